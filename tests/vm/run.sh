#!/usr/bin/env bash
# run.sh BUILT: what `make test-vm` runs; BUILT is what cargo said of the test programs.
# Viaduct on Debian's own kernel, in virtual machines. For each backend, all of them side
# by side: the end-to-end suite with three nodes as namespaces, in one boot of one machine;
# then a cluster of three nodes with a kernel each. The agent's kernel tests are run in
# ipip's machine. A part that fails does not hide the others.
set -uo pipefail
cd "$(dirname "$0")/../.."

export BACKENDS=${BACKENDS:-vxlan ipip host-gw}
# An emulated machine that shares its processor may take this many times longer.
export VIADUCT_TEST_PATIENCE=${VIADUCT_TEST_PATIENCE:-4}
export VIADUCT_BIN_DIR=${VIADUCT_BIN_DIR:-$PWD/target/release}

built() { # pattern file
  local found
  found=$(sed -n 's/.*"executable":"\([^"]*\/'"$1"'\)".*/\1/p' "$2")
  [ -n "$found" ] || {
    echo "no program $1 in $2: see make test-vm" >&2
    return 1
  }
  echo "$found"
}
e2e=$(built 'e2e-[0-9a-f]*' "${1:?the file that make test-vm writes}") || exit 1
kernel_tests=$(built 'kernel-[0-9a-f]*' "$1") || exit 1
viaduct_vm=$(built viaduct-vm "$1") || exit 1

kernel=$(tests/vm/kernel.sh) || exit 1
initramfs=$(tests/vm/initramfs.sh "$kernel") || exit 1
image=(--kernel "$kernel" --initramfs "$initramfs")
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=0

# Everything of one backend, as the summary below wants it.
backend() { # name
  local failed=0 begun=$SECONDS kernels=()
  if [ "$1" = ipip ]; then kernels=("$kernel_tests"); fi
  "$viaduct_vm" script "${image[@]}" --seconds 900 -- \
    tests/vm/suite.sh "$1" "$e2e" "${kernels[@]}" || failed=1
  echo "took: $1, the suite in one machine: $((SECONDS - begun)) s"
  begun=$SECONDS
  "$viaduct_vm" cluster "${image[@]}" --backend "$1" || failed=1
  echo "took: $1, three machines: $((SECONDS - begun)) s"
  return $failed
}

# Whose line it is, and when it came.
marked() { # name
  while IFS= read -r line; do printf '%-8s %4ds  %s\n' "$1" "$SECONDS" "$line"; done
}

echo "-- vm: Linux $(ls "$kernel/lib/modules"): $BACKENDS"
lane() { backend "$1" 2>&1 | tee "$logs/$1" | marked "$1"; }
lanes=()
for name in $BACKENDS; do
  lane "$name" &
  lanes+=("$!")
done
for lane in "${lanes[@]}"; do wait "$lane" || failed=1; done

printf '\n'
sed -n 's/^took: /time: /p' "$logs"/*
echo "time: all: $SECONDS s"
# One line of the kind that the other tests end with; a machine's scenes count as tests.
cat "$logs"/* | awk -v broken=$failed '
  # An end-to-end test that fails shows what it printed in its lab, of one test too.
  /^test result: FAILED. 0 passed; 1 failed;.* [1-9][0-9]* filtered out/ {next}
  sub(/^(kernel )?test result: /, "test result: ") {p+=$4; f+=$6; i+=$8}
  END {
    # A machine that went off, or a stale list, is no test that failed.
    if (broken && !f) f = 1
    printf "test-vm: %d passed, %d failed, %d ignored\n", p, f, i
  }'
exit $failed
