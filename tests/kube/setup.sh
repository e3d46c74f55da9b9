#!/usr/bin/env bash
# Installs what the Kubernetes cluster needs beyond tests/setup.sh and is not there,
# where that can be done (apt); otherwise names it in one line. `suite` as the argument adds
# what the server image of the Kubernetes project's own end-to-end suite is made of.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

missing=()
need() { # command package
  command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need iptables iptables
need nft nftables
need conntrack conntrack
need jq jq
need curl curl
need openssl openssl
need python3 python3-minimal
need dpkg-deb dpkg
if [ "${1:-}" = suite ]; then
  need dig bind9-dnsutils
  need nc netcat-openbsd
  need busybox busybox-static
fi

[ "$(id -u)" -eq 0 ] || {
  echo "kubelet and containerd need root: run this as root" >&2
  exit 1
}
command -v go >/dev/null 2>&1 || {
  echo "missing: go; install $(sed -n 's/^go /Go /p' "$(dirname "$0")/go/kubernetes/go.mod") or newer (https://go.dev/dl)" >&2
  exit 1
}
[ ${#missing[@]} -eq 0 ] && exit 0

if command -v apt-get >/dev/null 2>&1; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing: ${missing[*]}; install with: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
