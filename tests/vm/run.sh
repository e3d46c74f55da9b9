#!/usr/bin/env bash
# make test-vm: Viaduct on Debian's own kernel, in virtual machines. First three nodes
# as namespaces in one machine, then three machines with a kernel each.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What is tried, one after the other.
BACKENDS=${BACKENDS:-vxlan ipip host-gw}

bin=${VIADUCT_BIN_DIR:-$PWD/target/release}
export VIADUCT_BIN_DIR=$bin
kernel=$(tests/vm/kernel.sh)
initramfs=$(tests/vm/initramfs.sh "$kernel")
image=(--kernel "$kernel" --initramfs "$initramfs")

step() { printf '\n-- vm: %s (%ss since the start)\n' "$1" "$SECONDS"; }

step "the kernel has what it should"
"$bin/viaduct-vm" script "${image[@]}" -- tests/vm/check.sh
for backend in $BACKENDS; do
  step "$backend, three nodes in one machine"
  "$bin/viaduct-vm" script "${image[@]}" -- "$bin/viaductctl" lab demo --backend "$backend"
done
for backend in $BACKENDS; do
  step "$backend, three machines"
  "$bin/viaduct-vm" cluster "${image[@]}" --backend "$backend"
done
step done
