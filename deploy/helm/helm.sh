#!/usr/bin/env bash
# Prints the path of the helm that the chart is checked with, built once from its Go module
# into a cache outside the repository. HELM names another one.
set -euo pipefail
version=v3.22.0
if [ -n "${HELM:-}" ]; then echo "$HELM"; exit 0; fi
home=${VIADUCT_HELM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/viaduct/helm}/$version
if [ ! -x "$home/helm" ]; then
  command -v go >/dev/null || { echo "building helm needs Go; or set HELM to a helm $version" >&2; exit 1; }
  mkdir -p "$home"
  exec 9>"$home/.lock"
  flock 9 # two runs at the same time build it once
  echo "building helm $version" >&2
  # The directory is no module, so that no go.mod around it has a say.
  [ -x "$home/helm" ] || (cd "$home" && CGO_ENABLED=0 GOBIN="$home" nice -n 19 \
    go install -trimpath -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@$version" >&2)
fi
echo "$home/helm"
