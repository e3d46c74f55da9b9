#!/usr/bin/env bash
# A node that is paused until its blocks are another's: three minutes, and so for every night.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/vm/setup.sh
export VIADUCT_BIN_DIR=${VIADUCT_BIN_DIR:-$PWD/target/release}
export VIADUCT_TEST_PATIENCE=${VIADUCT_TEST_PATIENCE:-4}
kernel=$(tests/vm/kernel.sh)
initramfs=$(tests/vm/initramfs.sh "$kernel")
cargo build --locked -p viaduct-vm
exec target/debug/viaduct-vm pause --kernel "$kernel" --initramfs "$initramfs" --backend "${BACKEND:-vxlan}"
