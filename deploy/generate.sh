#!/usr/bin/env bash
# generate.sh [--check]: writes what is made from other files of deploy/: viaduct.yaml, the
# one file for everything, from the overlay vxlan; and the chart's templates (helm/generate.py).
# With --check it only fails when one of them is stale, when the chart makes other objects
# than the overlays, or when deploy/kind makes others than the overlay vxlan but for the image. KUBECTL says which kubectl.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  echo "# Generated from deploy/overlays/vxlan by deploy/generate.sh: change that, not this."
  "${KUBECTL:-kubectl}" kustomize overlays/vxlan
} >"$work/viaduct.yaml"
cp -r helm/viaduct "$work/chart"
rm -rf "$work"/chart/crds
helm/generate.py "$work/chart"

if [ "${1:-}" = --check ]; then
  stale() { echo "deploy/$1 is stale: run deploy/generate.sh (make manifests)" >&2; exit 1; }
  cmp -s viaduct.yaml "$work/viaduct.yaml" || stale viaduct.yaml
  diff -r helm/viaduct "$work/chart" || stale helm/viaduct
  helm/check.sh
  image="image: localhost/viaduct:dev"
  "${KUBECTL:-kubectl}" kustomize kind >"$work/kind.yaml"
  if ! diff <(tail -n +2 viaduct.yaml | sed -E 's|image: ghcr.io/viaduct-net/viaduct:.*|'"$image|") "$work/kind.yaml" ||
    ! grep -q "$image\$" "$work/kind.yaml"; then
    echo "deploy/kind makes other objects than deploy/overlays/vxlan" >&2
    exit 1
  fi
else
  cp "$work/viaduct.yaml" viaduct.yaml
  rm -rf helm/viaduct/crds
  cp -r "$work/chart/." helm/viaduct/
fi
