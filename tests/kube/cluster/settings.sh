# What the scripts of the cluster agree on; sourced by each of them.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH="$PATH:/usr/sbin:/sbin"
# All that one cluster writes lies below: one cluster for each such directory. Not below
# /etc, /var, /opt or /run, of which a node has its own.
RUN=${VIADUCT_KUBE_RUN:-/tmp/viaduct-kube}
NODES=${VIADUCT_KUBE_NODES:-n1 n2 n3}
PROXY=${VIADUCT_KUBE_PROXY:-iptables} # or nftables
NODE_CIDRS=${VIADUCT_KUBE_NODE_CIDRS:-} # anything: the controller-manager gives Nodes pod CIDRs
GROUP=viaduct-kube.${RUN##*/}         # its directory in each cgroup hierarchy

GATEWAY=172.30.0.1 CONTROL=172.30.0.10
PODS=10.244.0.0/16
SERVICES=10.96.0.0/16 API_SERVICE=10.96.0.1 DNS_SERVICE=10.96.0.10

# The address of a node: its place in NODES counts.
address_of() {
  local i=10 node
  for node in $NODES; do
    i=$((i + 1))
    if [ "$node" = "$1" ]; then echo "172.30.0.$i" && return; fi
  done
  echo "no node $1: there are $NODES" >&2
  return 1
}
