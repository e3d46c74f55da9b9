#!/bin/sh
# Inside a virtual machine: the kernel has every link type and every facility that the
# suite is for. What is missing fails the run by name; nothing is skipped.
set -u
failed=0
need() { # what, command...
  what=$1
  shift
  if ! said=$("$@" 2>&1); then
    echo "FAILED: the kernel $(uname -r) has no $what: $said"
    failed=1
  fi
}
gone() { ip link del "$1" 2>/dev/null; } # what could not be made is not there
need veth ip link add check-veth type veth peer name check-peer
need bridge ip link add check type bridge
gone check
need dummy ip link add check type dummy
need netem tc qdisc add dev check-veth root netem delay 1ms
gone check
gone check-veth
need vxlan ip link add check type vxlan id 99 dstport 9999 local 127.0.0.1
gone check
need ipip ip link add check type ipip local 127.0.0.1
gone check
need wireguard ip link add check type wireguard
gone check
need tun ip tuntap add dev check mode tun
gone check
need 'nftables with masquerade and conntrack' nft -f - <<NFT
table inet check {
  chain post {
    type nat hook postrouting priority srcnat;
    ct mark 1 masquerade fully-random
  }
  chain pre {
    type filter hook prerouting priority raw;
    fib saddr . iif oif missing counter drop
  }
}
NFT
nft delete table inet check 2>/dev/null
exit $failed
