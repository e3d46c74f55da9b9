#!/usr/bin/env bash
# Installs what building and testing need and is not there, where that can be
# done (root and apt); otherwise names it in one line.
set -euo pipefail

missing=()
need() { # command package
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need cc gcc
need protoc protobuf-compiler
need ip iproute2
need nsenter util-linux
need setpriv util-linux
need ping iputils-ping
need ethtool ethtool
need etcd etcd-server
need etcdctl etcd-client
need iperf3 iperf3
need nft nftables
need iptables-nft iptables
need openssl openssl
need conntrack conntrack
[ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)

if ! command -v cargo >/dev/null 2>&1; then
  echo "missing: cargo; install Rust 1.95 or newer (https://rustup.rs)" >&2
  exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # No service is to be started by being installed: tests start their own.
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.viaduct && chmod +x /usr/sbin/policy-rc.d.viaduct
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    mv /usr/sbin/policy-rc.d.viaduct /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  else
    rm -f /usr/sbin/policy-rc.d.viaduct
  fi
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing: ${missing[*]}; install with: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
