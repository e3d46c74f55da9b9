#!/usr/bin/env bash
# suite.sh BACKEND E2E [KERNEL]: inside a virtual machine: the kernel has what it should,
# then the agent's kernel tests if KERNEL is given, then the end-to-end suite with this
# backend, three nodes as namespaces. E2E and KERNEL are the test programs as they were
# built. Every test is run but those that `left-out` names, which are told.
set -uo pipefail
backend=$1
e2e=$2
kernel=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
failed=0

# For the summary: run.sh collects these lines.
part() { # name, command...
  local name=$1 begun=$SECONDS
  shift
  printf '\n-- vm: %s\n' "$name"
  "$@" || failed=1
  echo "took: $name: $((SECONDS - begun)) s"
}

# The rest would only fail in ways that are hard to read.
"$here/check.sh" || exit 1

# As root in namespaces of their own: a chroot may make no user namespace.
kernel_tests() {
  local test failed=0
  for test in $("$kernel" --list --format terse | sed -n 's/: test$//p'); do
    VIADUCT_TEST_NAMESPACE=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
      "$kernel" --color never --exact "$test" | grep -v -e '^$' -e '^running 1 test$'
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  done
  return $failed
}

# The `left-out` lines for the backend, as arguments of libtest.
end_to_end() {
  local backends test reason known skips=() unknown=0
  known=$("$e2e" --list --format terse)
  while read -r backends test reason; do
    case $backends in '' | '#'*) continue ;; esac
    case ",$backends," in *",$backend,"* | ',*,') ;; *) continue ;; esac
    [[ $'\n'$known == *$'\n'"$test"* ]] || {
      echo "FAILED: left-out names a test that is not there: $test"
      unknown=1
    }
    echo "left out: $test ($reason)"
    skips+=(--skip "$test")
  done <"$here/left-out"
  VIADUCT_TEST_BACKEND=$backend "$e2e" --color never --test-threads 3 "${skips[@]}" && [ "$unknown" -eq 0 ]
}

[ -z "$kernel" ] || part "the agent's kernel tests" kernel_tests
part "$backend, end-to-end suite" end_to_end
exit $failed
