#!/usr/bin/env bash
# The images of the tests, each a static program or two in an empty root.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
BIN=$(cat "$RUN/home")/bin
mkdir -p "$RUN/images"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

image() { # NAME:TAG ENTRYPOINT-WORD... ; what is in $work/root
  local name=$1 words=()
  shift
  for word in "$@"; do words+=(--entrypoint "$word"); done
  "$here/../../../deploy/image/oci.py" "$work/root" "$RUN/images/${name%%:*}.tar" --name "localhost/$name" "${words[@]}"
}
mkdir "$work/root"
cp "$BIN/coredns" "$work/root/"
image coredns:1 /coredns
rm "$work/root/coredns"
# Also every pod's own container, the "pause" image: it does nothing until it is told else.
cp "$RUN/probe" "$work/root/"
image probe:1 /probe pause
