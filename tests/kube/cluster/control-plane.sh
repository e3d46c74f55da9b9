#!/usr/bin/env bash
# control-plane.sh start|stop|kill [PROGRAM...]: etcd, API server, controller-manager and
# scheduler, in the network namespace `control`; runs in the room.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
BIN=$(cat "$RUN/home")/bin
state=$RUN/control pki=$RUN/pki
mkdir -p "$state"

launch() { # PROGRAM ARGUMENT...
  nsenter --net=/run/netns/control setsid "$BIN/$1" "${@:2}" >>"$state/$1.log" 2>&1 </dev/null 9>&- &
  echo $! >"$state/$1.pid"
}

start_etcd() {
  # Viaduct's own records may lie in it too: the nodes reach it on the underlay.
  launch etcd --name it --data-dir "$state/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:2379,http://$CONTROL:2379" \
    --advertise-client-urls "http://$CONTROL:2379"
}

start_kube_apiserver() {
  cat >"$state/audit.yaml" <<'AUDIT'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:viaduct-system"]}
- {level: None}
AUDIT
  launch kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address=$CONTROL --secure-port=6443 --cert-dir="$state" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --client-ca-file="$pki/ca.crt" --token-auth-file="$pki/tokens.csv" \
    --kubelet-client-certificate="$pki/apiserver.crt" --kubelet-client-key="$pki/apiserver.key" \
    --kubelet-preferred-address-types=InternalIP \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --service-cluster-ip-range=$SERVICES --allow-privileged=true \
    --audit-policy-file="$state/audit.yaml" --audit-log-path="$state/audit.log"
  local tries=300
  until [ "$("$BIN/kubectl" --kubeconfig "$pki/admin.conf" get --raw /readyz 2>/dev/null)" = ok ]; do
    kill -0 "$(cat "$state/kube-apiserver.pid")" && [ $((tries -= 1)) -gt 0 ] || {
      tail -n 5 "$state/kube-apiserver.log" >&2
      exit 1
    }
    sleep 0.2
  done
}

start_kube_controller_manager() {
  launch kube-controller-manager --kubeconfig="$pki/controller-manager.conf" \
    --authentication-kubeconfig="$pki/controller-manager.conf" \
    --authorization-kubeconfig="$pki/controller-manager.conf" \
    --bind-address=127.0.0.1 --cert-dir="$state" --leader-elect=false \
    --use-service-account-credentials=true \
    --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
    ${NODE_CIDRS:+--allocate-node-cidrs --cluster-cidr=$PODS}
}

start_kube_scheduler() {
  launch kube-scheduler --kubeconfig="$pki/scheduler.conf" \
    --authentication-kubeconfig="$pki/scheduler.conf" \
    --authorization-kubeconfig="$pki/scheduler.conf" \
    --bind-address=127.0.0.1 --cert-dir="$state" --leader-elect=false
}

verb=$1
shift
[ $# -gt 0 ] || set -- etcd kube-apiserver kube-controller-manager kube-scheduler
for program in "$@"; do
  case $verb in
  start) "start_${program//-/_}" ;;
  stop | kill)
    signal=TERM
    [ "$verb" = stop ] || signal=KILL
    pid=$(cat "$state/$program.pid")
    kill -$signal "$pid"
    while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.1; done
    ;;
  *) echo "usage: control-plane.sh start|stop|kill [PROGRAM...]" >&2 && exit 2 ;;
  esac
done
