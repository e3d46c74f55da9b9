#!/usr/bin/env bash
# Prints the directory of the CNI project's own programs: cnitool, which is libcni on a
# command line, and the plugins that are chained behind ours. They are built from Go
# modules (../kube/go/plugins/go.mod pins each) into a cache outside the repository, keyed
# by what decides about the result, and never built twice. Cold, about a minute.
set -euo pipefail
cd "$(dirname "$0")"
source=../kube/go/plugins

version=$(sed -n 's|^.*github.com/containernetworking/plugins v\([^ ]*\).*|\1|p' $source/go.mod | head -n 1)
key=$(cat $source/go.mod $source/go.sum build.sh <(uname -m) | sha256sum | cut -c1-8)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/viaduct/cni
home=$cache/$version-$key
if [ -d "$home" ]; then echo "$home"; exit 0; fi

command -v go >/dev/null || {
  echo "building cnitool and the CNI plugins needs Go 1.21 or newer" >&2
  exit 1
}
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two runs at the same time build it once
if [ -d "$home" ]; then echo "$home"; exit 0; fi
work=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"
(cd $source && CGO_ENABLED=0 nice -n 19 go build -trimpath -ldflags "-s -w" -o "$work/" tool) >&2
mv "$work" "$home" # the whole directory or nothing
echo "$home"
