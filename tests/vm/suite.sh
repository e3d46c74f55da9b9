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

# What `left-out` has for a backend, or for `kernel`: as arguments of libtest in `skips`.
left_out() { # whom, program
  local whom test reason known unknown=0
  skips=()
  known=$("$2" --list --format terse)
  while read -r whom test reason; do
    case $whom in '' | '#'*) continue ;; esac
    case ",$whom," in *",$1,"*) ;; ',*,') [ "$1" = kernel ] && continue ;; *) continue ;; esac
    [[ $'\n'$known == *$'\n'"$test"* ]] || {
      echo "FAILED: left-out names a test that is not there: $test"
      unknown=1
    }
    echo "left out: $test ($reason)"
    skips+=(--skip "$test")
  done <"$here/left-out"
  return $unknown
}

# As root in namespaces of their own: a chroot may make no user namespace.
kernel_tests() {
  local test failed=0
  left_out kernel "$kernel" || failed=1
  for test in $("$kernel" --list --format terse "${skips[@]}" | sed -n 's/: test$//p'); do
    VIADUCT_TEST_NAMESPACE=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
      "$kernel" --color never --exact "$test" |
      sed -e '/^$/d' -e '/^running 1 test$/d' -e 's/^test result: /kernel &/'
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  done
  return $failed
}

end_to_end() {
  local failed=0
  left_out "$backend" "$e2e" || failed=1
  VIADUCT_TEST_BACKEND=$backend "$e2e" --color never --test-threads 2 "${skips[@]}" || failed=1
  return $failed
}

[ -z "$kernel" ] || part "the agent's kernel tests" kernel_tests
part "$backend, end-to-end suite" end_to_end
exit $failed
