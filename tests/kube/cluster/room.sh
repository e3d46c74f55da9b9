#!/usr/bin/env bash
# The first process of the cluster: everything else is below it, in PID, mount and network
# namespaces that go when it goes, however it ends. Its own network is the underlay's switch.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
BIN=$(cat "$RUN/home")/bin
trap 'kill $(jobs -p) 2>/dev/null' EXIT

# A /run of its own: the names of network namespaces stay in here.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns

ip link set lo up
ip link add br0 type bridge mcast_snooping 0
ip link set br0 up
ip addr add $GATEWAY/24 dev br0
for table in iptables ip6tables arptables; do
  file=/proc/sys/net/bridge/bridge-nf-call-$table
  if [ -e $file ]; then echo 0 >$file; fi
done

# plug NAME ADDRESS: a network namespace with eth0 on the switch.
plug() {
  ip netns add "$1"
  ip -n "$1" link set lo up
  ip -n "$1" link add eth0 type veth peer name "to-$1" netns $$
  ip link set "to-$1" master br0 up
  ip -n "$1" addr add "$2/24" dev eth0
  ip -n "$1" link set eth0 up
  # It leads nowhere, but without one a node cannot reach a service's address.
  ip -n "$1" route add default via $GATEWAY
}
plug control $CONTROL
for node in $NODES; do
  plug "$node" "$(address_of "$node")"
  nsenter --net="/run/netns/$node" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
done

"$here/control-plane.sh" start
for node in $NODES; do "$here/power.sh" on "$node"; done
touch "$RUN/ready"

# Orphans of the nodes end up here; they are buried, and nothing else happens.
while :; do wait -n 2>/dev/null || sleep 1; done
