#!/usr/bin/env bash
# make test-kube: Viaduct on a real Kubernetes. All checks with kube-proxy in iptables mode,
# then on a new cluster with nftables, and on a third where Nodes have pod CIDRs that are
# adopted, those that depend on it. RUNS names other runs (`brief` is what CI has the time for: all
# that depends on kube-proxy, an update under traffic, permissions, uninstalling and the chart;
# `leave` the last two with what they need), arguments choose among the checks.
set -euo pipefail
cd "$(dirname "$0")/../.."
export VIADUCT_BIN_DIR=${VIADUCT_BIN_DIR:-$PWD/target/release}
export VIADUCT_KUBE_RUN=${VIADUCT_KUBE_RUN:-/tmp/viaduct-kube}
image=target/viaduct-image.tar
log=target/test-kube.log
: >"$log"

step() { printf '\n-- kube: %s (%ss since the start)\n' "$1" "$SECONDS"; }

step "Kubernetes $(basename "$(tests/kube/build.sh)")"
KUBECTL=$(tests/kube/build.sh)/bin/kubectl deploy/generate.sh --check
deploy/image/build.sh "$image"
deploy/image/check.sh
failed=0
for run in ${RUNS:-iptables nftables adopt}; do
  proxy=$run deployed=${VIADUCT_KUBE_DEPLOY:-viaduct} some=(--short) cidrs=
  case $run in
  iptables) some=() ;;
  brief) proxy=iptables some+=(--brief --leave) ;;
  leave) proxy=iptables some+=(--leave) ;;
  nftables) some+=(--leave) ;;
  adopt) proxy=iptables deployed=viaduct-adopt cidrs=yes ;;
  *) echo "RUNS=$run: iptables, nftables, adopt, brief and leave are allowed" >&2 && exit 2 ;;
  esac
  step "three nodes, kube-proxy in $proxy mode${cidrs:+, pod CIDRs of Nodes adopted}"
  VIADUCT_KUBE_PROXY=$proxy VIADUCT_KUBE_NODE_CIDRS=$cidrs VIADUCT_KUBE_DEPLOY=$deployed \
    tests/kube/cluster.sh up sh -c \
    "tests/kube/cluster.sh load $image && \"$VIADUCT_BIN_DIR/viaduct-kube\" \"\$@\"" sh "${some[@]}" "$@" |
    tee -a "$log" || failed=1
done
step done
awk '/^[0-9]+ passed, [0-9]+ failed$/ {p += $1; f += $3} END {printf "test-kube: %d passed, %d failed\n", p, f; exit !p || f}' "$log" || failed=1
exit $failed
