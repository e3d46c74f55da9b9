#!/usr/bin/env bash
# generate.sh [--check]: writes deploy/viaduct.yaml, the one file for everything, from the
# overlay vxlan; with --check it only fails when that file is stale. KUBECTL says which kubectl.
set -euo pipefail
cd "$(dirname "$0")"
output=viaduct.yaml
{
  echo "# Generated from deploy/overlays/vxlan by deploy/generate.sh: change that, not this."
  "${KUBECTL:-kubectl}" kustomize overlays/vxlan
} >"$output.new"
trap 'rm -f "$output.new"' EXIT
if [ "${1:-}" = --check ]; then
  cmp -s "$output" "$output.new" || {
    echo "deploy/$output is stale: run deploy/generate.sh" >&2
    exit 1
  }
else
  mv "$output.new" "$output"
fi
