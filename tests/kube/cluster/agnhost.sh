#!/usr/bin/env bash
# agnhost.sh HOME NAME OUTPUT: the server image of the Kubernetes project's own end-to-end suite,
# as an archive: agnhost and CoreDNS as build.sh built them, and in place of what the original
# takes from Alpine this machine's tools with their libraries.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
home=$1 name=$2 output=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,etc,lib64,root,sbin,tmp,uploads,usr/bin,usr/lib,usr/sbin}
chmod 1777 "$root/tmp"

cp "$home/bin/agnhost" "$home/bin/coredns" "$root/"
ln -s agnhost "$root/agnhost-2"
porter=$(cd "$(dirname "$0")/../go/kubernetes" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost/porter
cp "$porter"/localhost.{crt,key} "$root/"

tools=()
for tool in bash curl dig nc ss ip getent; do
  path=$(readlink -f "$(command -v $tool)")
  cp "$path" "$root/usr/bin/$tool"
  tools+=("$path")
done
for tool in "${tools[@]}"; do ldd "$tool"; done | grep -o '/[^ ]*' | sort -u | while read -r library; do
  [ -e "$root$library" ] || install -D -m 0755 "$(readlink -f "$library")" "$root$library"
done
cp "$(command -v busybox)" "$root/usr/lib/busybox"
"$root/usr/lib/busybox" --list-full | while read -r path; do
  [ -e "$root/usr/bin/${path##*/}" ] || ln -sf /usr/lib/busybox "$root/$path"
done
ln -sf /usr/bin/bash "$root/bin/bash"
ln -sf /usr/bin/bash "$root/bin/sh"
printf 'root:x:0:0:root:/root:/bin/bash\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >"$root/etc/group"
"$(dirname "$0")/../../../deploy/image/oci.py" "$root" "$output" --name "$name" --entrypoint /agnhost --cmd pause
