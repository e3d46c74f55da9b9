#!/usr/bin/env bash
# suite.sh [FOCUS]: the Kubernetes project's own end-to-end suite (build.sh suite) on the cluster
# that is up, which has a network and a DNS: its tests that are sig-network and Conformance, or
# those of them that the regular expression FOCUS chooses. Fails when one fails, and when others
# ran than should. What it said, and its report, are in target/conformance.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/kube/cluster/settings.sh
home=$(cat "$RUN/home")
report=$PWD/target/conformance
focus=${1:-}
# As many as Kubernetes 1.36.3 has: fewer are a selection that went wrong.
all=47
rm -rf "$report"
mkdir -p "$report"

# Of the images that the suite knows, this selection asks for three.
images=$("$home/bin/e2e.test" --list-images 2>/dev/null)
of() { grep -E -m 1 "/$1\$" <<<"$images"; }
agnhost=$(of 'agnhost:[0-9]+\.[0-9]+\.[0-9]+')
archive=$home/agnhost.tar
[ "$archive" -nt tests/kube/cluster/agnhost.sh ] || tests/kube/cluster/agnhost.sh "$home" "$agnhost" "$archive"
for node in $NODES; do
  images() { tests/kube/cluster.sh on "$node" "$home/bin/ctr" -n k8s.io images "$@" >/dev/null 2>"$report/ctr.log"; }
  images import "$archive"
  # Of the image of the DNS tests dig, getent and a shell are used.
  images tag --force "$agnhost" "$(of 'glibc-dns-testing:.*')"
  images tag --force localhost/probe:1 "$(of 'pause:.*')"
done

status=0
# Its directory must be one of the room's own, or it would not know where it is.
tests/kube/cluster.sh on room nsenter --net=/run/netns/control --wd="$report" "$home/bin/e2e.test" \
  -kubeconfig="$RUN/pki/admin.conf" -provider=skeleton -num-nodes="$(wc -w <<<"$NODES")" \
  -report-dir="$report" --ginkgo.no-color --ginkgo.timeout=60m \
  --ginkgo.label-filter='sig-network && Conformance' ${focus:+--ginkgo.focus="$focus"} \
  >"$report/e2e.log" 2>&1 || status=$?

# The suite's own summary.
sed -n '/^Summarizing/,/^Ran /p' "$report/e2e.log" | grep -v '^Ran ' || :
grep -E '^(Ran [0-9]+ of|SUCCESS!|FAIL!)' "$report/e2e.log" || tail -n 20 "$report/e2e.log" | cut -c 1-300
ran=$(sed -n 's/^Ran \([0-9]*\) of .*/\1/p' "$report/e2e.log")
if [ "$status" = 0 ] && { [ "${ran:-0}" = 0 ] || { [ -z "$focus" ] && [ "$ran" != $all ]; }; }; then
  echo "${ran:-no} tests ran${focus:+ of $focus}, $all are expected of the whole" >&2
  status=1
fi
exit "$status"
