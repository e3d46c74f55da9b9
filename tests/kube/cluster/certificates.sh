#!/usr/bin/env bash
# The cluster's authority, one certificate for the API server (it serves with it and shows
# it to the kubelets), the key of service accounts, and a token for everybody else.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
mkdir -p "$RUN/pki"
cd "$RUN/pki"
exec 2>openssl.log

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
key ca.key
openssl req -x509 -new -key ca.key -days 30 -subj /CN=kubernetes -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature
key apiserver.key
openssl req -new -key apiserver.key -subj /O=system:masters/CN=kube-apiserver -out apiserver.csr
names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
printf '%s\n' "subjectAltName=$names,IP:127.0.0.1,IP:$CONTROL,IP:$API_SERVICE" \
  extendedKeyUsage=serverAuth,clientAuth keyUsage=critical,digitalSignature >apiserver.ext
openssl x509 -req -in apiserver.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
  -extfile apiserver.ext -out apiserver.crt
openssl genrsa -out sa.key 2048
openssl rsa -in sa.key -pubout -out sa.pub

# user NAME USER [GROUP]: a token, and the kubeconfig that has it.
user() {
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$2,$2,\"${3:-}\"" >>tokens.csv
  cat >"$1.conf" <<CONF
apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: "https://$CONTROL:6443", certificate-authority: $PWD/ca.crt}}]
users: [{name: me, user: {token: $token}}]
contexts: [{name: it, context: {cluster: it, user: me}}]
current-context: it
CONF
}
user admin admin system:masters
user controller-manager system:kube-controller-manager
user scheduler system:kube-scheduler
user proxy system:kube-proxy
for node in $NODES; do user "$node" "system:node:$node" system:nodes; done
