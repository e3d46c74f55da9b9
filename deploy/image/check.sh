#!/usr/bin/env bash
# Runs the image's programs in nothing but its root file system (rootfs.sh): they start; nft finds
# its libraries; and a static program finds an etcd by its name, in /etc/hosts and by DNS. In
# namespaces of its own; needs etcd, python3 and the binaries (target/release).
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/../.."
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  deploy/image/rootfs.sh "${VIADUCT_BIN_DIR:-target/release}" "$work/root"
  unshare --user --map-root-user --net --mount --pid --fork --kill-child deploy/image/check.sh inside "$work"
  exit
fi
work=$2
ip link set lo up
printf '127.0.0.1 etcd.in-hosts\n' >"$work/root/etc/hosts"
printf 'nameserver 127.0.0.1\nsearch svc.example\n' >"$work/root/etc/resolv.conf"
# Every container has these; of random numbers a static program asks the device.
mkdir "$work/root/dev"
for device in null random urandom; do
  touch "$work/root/dev/$device"
  mount --bind "/dev/$device" "$work/root/dev/$device"
done
etcd --data-dir "$work/etcd" >"$work/etcd.log" 2>&1 &
# A DNS that knows one name; it answers other types of it, such as AAAA, with no record.
python3 - >"$work/dns.log" 2>&1 <<'DNS' &
import socket
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
print("listens", flush=True)
known = b"\4etcd\3svc\7example\0"
while True:
    asked, who = names.recvfrom(512)
    end = asked.index(b"\0", 12) + 1
    question, kind = asked[12:end + 4], asked[end:end + 2]
    there = asked[12:end].lower() == known
    answer = b"\xc0\x0c" + kind + b"\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if there and kind == b"\0\1" else b""
    flags = b"\x81\x80" if there else b"\x81\x83"
    names.sendto(asked[:2] + flags + b"\0\1" + (b"\0\1" if answer else b"\0\0") + b"\0\0\0\0" + question + answer, who)
DNS
in_root() { chroot "$work/root" "$@"; }
for program in agent controller; do in_root "/usr/bin/viaduct-$program" --version >/dev/null; done
in_root /usr/lib/viaduct/viaduct </dev/null >/dev/null 2>&1 || [ $? = 1 ]
in_root /usr/sbin/nft -j list tables >/dev/null
listen() { (: </dev/tcp/127.0.0.1/2379) 2>/dev/null && grep -q listens "$work/dns.log"; }
for _ in $(seq 300); do
  listen && break
  sleep 0.1
done
listen || {
  echo "etcd or the DNS of this check does not listen: $(tail -n 1 "$work/etcd.log" "$work/dns.log")" >&2
  exit 1
}
for name in etcd.in-hosts etcd etcd.svc.example; do
  in_root /usr/bin/viaductctl --datastore "etcd://$name:2379" nodes >"$work/said" 2>&1 || {
    echo "in the image, the name $name is not found: $(tail -n 1 "$work/said")" >&2
    exit 1
  }
done
if in_root /usr/bin/viaductctl --datastore etcd://nowhere.example:2379 nodes >"$work/said" 2>&1; then
  echo "in the image, a name that there is not is found" >&2
  exit 1
fi
echo "the image's programs run in nothing but their root, and find names in hosts and by DNS"
