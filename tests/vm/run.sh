#!/usr/bin/env bash
# run.sh BUILT: what `make test-vm` runs; BUILT is what cargo said of the test programs.
# Viaduct on Debian's own kernel, in virtual machines. The end-to-end suite for each
# backend, three nodes as namespaces, in one boot of one machine; then clusters of three
# machines with a kernel each, all of them side by side: they wait more than they work.
# A part that fails does not hide the others.
set -uo pipefail
cd "$(dirname "$0")/../.."

export BACKENDS=${BACKENDS:-vxlan ipip host-gw}
# An emulated machine that shares its processor may take this many times longer.
export VIADUCT_TEST_PATIENCE=${VIADUCT_TEST_PATIENCE:-4}
export VIADUCT_BIN_DIR=${VIADUCT_BIN_DIR:-$PWD/target/release}
bin=$VIADUCT_BIN_DIR

built() { # name file
  local found
  found=$(sed -n 's/.*"executable":"\([^"]*\/'"$1"'-[^"/]*\)".*/\1/p' "$2")
  [ -n "$found" ] || echo "no test program $1 in $2: see make test-vm" >&2
  echo "$found"
}
e2e=$(built e2e "${1:?the file that make test-vm writes}")
kernel_tests=$(built kernel "$1")
[ -n "$e2e" ] && [ -n "$kernel_tests" ] || exit 1

kernel=$(tests/vm/kernel.sh) || exit 1
initramfs=$(tests/vm/initramfs.sh "$kernel") || exit 1
image=(--kernel "$kernel" --initramfs "$initramfs")
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0

echo "-- vm: one machine, Linux $(ls "$kernel/lib/modules")"
"$bin/viaduct-vm" script "${image[@]}" --seconds 900 -- tests/vm/suite.sh "$e2e" "$kernel_tests" |
  tee "$logs/suite" || failed=1
echo "took: one machine, all of it: $SECONDS s" | tee -a "$logs/suite"

# One after the other would wait three times for the same thirty seconds.
clusters=()
begun=$SECONDS
for backend in $BACKENDS; do
  "$bin/viaduct-vm" cluster "${image[@]}" --backend "$backend" >"$logs/$backend" 2>&1 &
  clusters+=("$!")
done
for backend in $BACKENDS; do
  wait "${clusters[0]}" || failed=1
  clusters=("${clusters[@]:1}")
  printf '\n-- vm: %s, three machines\n' "$backend"
  cat "$logs/$backend"
done
echo "took: three machines for each backend, side by side: $((SECONDS - begun)) s" >>"$logs/suite"

printf '\n'
sed -n 's/^took: /time: /p' "$logs/suite"
echo "time: all: $SECONDS s"
# One line of the kind that the other tests end with; a machine's scenes count as tests.
cat "$logs"/* | awk -v broken=$failed '
  /^test result: /{p+=$4; f+=$6; i+=$8}
  END {
    # A machine that went off, or a stale list, is no test that failed.
    if (broken && !f) f = 1
    printf "test-vm: %d passed, %d failed, %d ignored\n", p, f, i
  }'
exit $failed
