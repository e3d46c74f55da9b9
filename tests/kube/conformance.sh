#!/usr/bin/env bash
# make conformance: the Kubernetes project's own end-to-end suite with its own selection,
# [sig-network] and [Conformance], on a new cluster of three nodes with Viaduct as its network.
# The argument, a regular expression, chooses among them. PROXY=nftables for the other mode of
# kube-proxy.
set -euo pipefail
cd "$(dirname "$0")/../.."
export VIADUCT_BIN_DIR=${VIADUCT_BIN_DIR:-$PWD/target/release}
export VIADUCT_KUBE_RUN=${VIADUCT_KUBE_RUN:-/tmp/viaduct-kube}
export VIADUCT_KUBE_PROXY=${PROXY:-iptables}
image=target/viaduct-image.tar
. tests/kube/cluster/settings.sh

step() { printf '\n-- conformance: %s (%ss since the start)\n' "$1" "$SECONDS"; }

if [ "${1:-}" = in-the-cluster ]; then
  shift
  kubectl() { tests/kube/cluster.sh kubectl "$@"; }
  tests/kube/cluster.sh load "$image"
  "$VIADUCT_BIN_DIR/viaduct-kube" "deploying Viaduct"
  kubectl apply -f - <tests/kube/manifests/coredns.yaml >/dev/null
  kubectl -n kube-system rollout status deployment/coredns --timeout=90s
  # The API server has a machine of its own here, which is no node: what it fetches from pods
  # itself (pods/proxy) it finds through their nodes.
  kubectl get addressblocks -o jsonpath='{range .items[*]}{.spec.cidr} {.spec.node}{"\n"}{end}' |
    while read -r block node; do
      tests/kube/cluster.sh on room ip -n control route replace "$block" via "$(address_of "$node")" </dev/null
    done
  exec tests/kube/suite.sh "$@"
fi
step "Kubernetes $(basename "$(tests/kube/build.sh suite)")"
deploy/image/build.sh "$image"
step "three nodes, kube-proxy in $VIADUCT_KUBE_PROXY mode"
status=0
tests/kube/cluster.sh up tests/kube/conformance.sh in-the-cluster "$@" || status=$?
step done
exit $status
