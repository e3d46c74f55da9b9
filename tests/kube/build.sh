#!/usr/bin/env bash
# Prints the directory of the programs that a Kubernetes cluster of our own is made of:
# control plane, node, container runtime, cluster DNS. They are built from Go modules (go/*/go.mod pins each) into a cache outside the
# repository, keyed by what decides about the result, and never built twice. `suite` as
# the argument adds the Kubernetes project's own end-to-end suite (e2e.test, agnhost).
# Cold, one core's eleven minutes; the Go build cache makes the next version cheaper.
set -euo pipefail
cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/sbin"

cache=${VIADUCT_KUBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/viaduct/kube}
version() { sed -n "s|^\(require \)\?[[:space:]]*$2 v\([^ ]*\).*|\2|p" "go/$1/go.mod" | head -n 1; }
kubernetes=$(version kubernetes k8s.io/kubernetes)
containerd=$(version containerd github.com/containerd/containerd/v2)
key=$( (find go -type f -not -path 'go/probe/*' -print0 | sort -z | xargs -0 sha256sum; sha256sum build.sh; uname -m) | sha256sum | cut -c1-8)
home=$cache/$kubernetes-$key
base_ready() { [ -x "$home/bin/runc" ]; }
suite_ready() { [ "$suite" = "" ] || [ -x "$home/bin/e2e.test" ]; }
suite=${1:-}
if base_ready && suite_ready; then echo "$home"; exit 0; fi

command -v go >/dev/null || {
  echo "building Kubernetes needs Go $(sed -n 's/^go //p' go/kubernetes/go.mod) or newer" >&2
  exit 1
}
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9 # two runs at the same time build it once
if base_ready && suite_ready; then echo "$home"; exit 0; fi

work=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"
mkdir -p "$work/bin" "$work/cni"
export CGO_ENABLED=0

# build COMPONENT INTO [LINKER FLAG...]: all that its go.mod lists as tools.
build() {
  local component=$1 into=$2 since=$SECONDS
  shift 2
  echo "building $component" >&2
  (cd "go/$component" && nice -n 19 go build -trimpath -tags "$tags" -ldflags "-s -w $*" -o "$into/" tool) >&2
  echo "  $((SECONDS - since)) s" >&2
}
if ! base_ready; then
  tags=
  build plugins "$work/cni"
  mv "$work/cni/cnitool" "$work/bin/"
  build etcd "$work/bin"
  mv "$work/bin/server" "$work/bin/etcd"
  tags=no_btrfs,no_devmapper,no_zfs \
    build containerd "$work/bin" -X "github.com/containerd/containerd/v2/version.Version=v$containerd"
  build coredns "$work/bin"
  stamp=k8s.io/component-base/version
  minor=${kubernetes#*.}
  build kubernetes "$work/bin" -X "$stamp.gitVersion=v$kubernetes" \
    -X "$stamp.gitMajor=${kubernetes%%.*}" -X "$stamp.gitMinor=${minor%%.*}"
  # runc needs cgo and libseccomp: Debian's, unpacked and never installed.
  if command -v apt-get >/dev/null; then
    (cd "$work" && { apt-get download -qq runc || { apt-get update -qq && apt-get download -qq runc; }; } >&2) \
      2> >(grep -v unsandboxed >&2)
    dpkg -x "$work"/runc_*.deb "$work/runc"
    mv "$work/runc/usr/sbin/runc" "$work/bin/runc"
    rm -rf "$work/runc" "$work"/runc_*.deb
  else
    install -m 0755 "$(command -v runc)" "$work/bin/runc"
  fi
  rm -rf "$home"
  mv "$work" "$home" # the whole directory or nothing
fi
if ! suite_ready; then
  echo "building the end-to-end suite" >&2
  (cd go/kubernetes && nice -n 19 go test -c -vet=off -trimpath -ldflags "-s -w" -o "$home/bin/.e2e.test" k8s.io/kubernetes/test/e2e) >&2
  mv "$home/bin/.e2e.test" "$home/bin/e2e.test"
fi
echo "$home"
