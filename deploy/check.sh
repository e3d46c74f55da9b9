#!/usr/bin/env bash
# Checks what can be checked of deploy/ without a cluster, a container engine or a running
# systemd: the units; that the Dockerfile names what exists; that all name the same release.
# A check whose program is not installed says that it was skipped.
set -euo pipefail
cd "$(dirname "$0")"
failed=0
fail() { echo "deploy/check.sh: $*" >&2; failed=1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if command -v systemd-analyze >/dev/null; then
  # The programs are not installed here.
  for unit in systemd/*.service; do
    sed 's|^ExecStart=/usr/bin/viaduct-.*|ExecStart=/bin/true|' "$unit" >"$work/${unit##*/}"
    # The exposure, times ten: 4.0 is "OK".
    systemd-analyze security --offline=true --threshold=40 --no-pager "$work/${unit##*/}" >"$work/told" ||
      fail "$unit: $(tail -n 1 "$work/told")"
  done
  said=$(systemd-analyze verify "$work"/*.service 2>&1) || fail "$said"
  [ -z "$said" ] || fail "$said"
else
  echo "deploy/check.sh: the units are not checked: systemd-analyze is not installed" >&2
fi

# Programs and scripts that the Dockerfile calls or copies from this repository.
for file in $(grep -o 'deploy/[a-z/.-]*\.sh' image/Dockerfile | sort -u); do
  [ -x "../$file" ] || fail "the Dockerfile runs $file, which is no program here"
done
for package in $(grep -o -- '-p [a-z-]*' image/Dockerfile | cut -d' ' -f2 | sort -u); do
  grep -qs "^name = \"$package\"" ../*/Cargo.toml || fail "the Dockerfile builds $package, which is no package here"
done
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' ../Cargo.toml)
grep -q "^ARG RUST_VERSION=$wanted" image/Dockerfile || fail "the Dockerfile does not build with Rust $wanted"
grep -q '^ARG BASE_DIGEST$' image/Dockerfile && ! grep '^FROM' image/Dockerfile | grep -qv -e '@${BASE_DIGEST} ' -e 'FROM scratch' ||
  fail "the Dockerfile has a base that is not pinned by a digest"
# The same labels, whoever makes the image.
for label in $(grep -o 'org\.opencontainers\.image\.[a-z]*' image/Dockerfile | sort -u); do
  grep -q "$label" image/build.sh || fail "image/build.sh does not set the label $label"
done
for label in $(grep -o 'org\.opencontainers\.image\.[a-z]*' image/build.sh | sort -u); do
  grep -q "$label" image/Dockerfile || fail "the Dockerfile does not set the label $label"
done

# The image that everything is of, and the release.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' ../Cargo.toml | head -n 1)
grep -q "newTag: $version$" base/kustomization.yaml || fail "base/kustomization.yaml names another release than $version"
grep -q "^appVersion: $version$" helm/viaduct/Chart.yaml || fail "the chart names another release than $version"
[ "$(grep -c "image: ghcr.io/viaduct-net/viaduct:$version$" uninstall/viaduct-uninstall.yaml)" = 2 ] ||
  fail "uninstall/viaduct-uninstall.yaml names another image than that of $version"
exit $failed
