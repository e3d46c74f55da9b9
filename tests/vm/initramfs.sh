#!/usr/bin/env bash
# initramfs.sh KERNEL_DIR: prints the path of an initramfs for that kernel: busybox,
# the modules that the file `modules` names, and `init`. Made once for each content.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

kernel=$1
here=$(cd "$(dirname "$0")" && pwd)
release=$(ls "$kernel/lib/modules")
busybox=$(command -v busybox)
key=$(cat "$here/modules" "$here/init" "$here/initramfs.sh" "$busybox" | sha256sum | cut -c1-16)
image=$kernel/initramfs-$key.gz

if [ ! -e "$image" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  mkdir -p "$root"/{bin,sbin,dev,proc,sys,host,rw,root,lib/modules/"$release"}
  install -m 0755 "$busybox" "$root/bin/busybox"
  install -m 0755 "$here/init" "$root/init"
  # The kernel asks for modules here, whatever root its callers have.
  ln -s ../bin/busybox "$root/sbin/modprobe"

  while read -r module; do
    case $module in '' | '#'*) continue ;; esac
    modprobe -d "$kernel" -S "$release" --show-depends "$module" || {
      echo "the kernel $release has no module $module" >&2
      exit 1
    }
  done <"$here/modules" | awk '$1 == "insmod" {print $2}' | sort -u >"$work/files"
  while read -r file; do
    target=$root/${file#"$kernel"/}
    mkdir -p "$(dirname "$target")"
    case $file in
      *.xz) xz -dc "$file" >"${target%.xz}" ;;
      *.zst) zstd -qdc "$file" >"${target%.zst}" ;;
      *) cp "$file" "$target" ;;
    esac
  done <"$work/files"
  cp "$kernel/lib/modules/$release/"modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$release/"
  depmod -b "$root" "$release"

  # Written beside and moved, so that it is whole when it is there.
  (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1 >"$image.$$"
  mv "$image.$$" "$image"
fi
echo "$image"
