#!/usr/bin/env bash
# build.sh [OUTPUT]: the image as an OCI archive (target/viaduct-image.tar), without a
# container engine: the root file system of the Dockerfile, from what `make build` made.
# Import it with `ctr -n k8s.io images import`, push it with any OCI tool.
set -euo pipefail
cd "$(dirname "$0")/../.."
output=${1:-target/viaduct-image.tar}
name=${VIADUCT_IMAGE:-localhost/viaduct:dev}
binaries=${VIADUCT_BIN_DIR:-target/release}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
deploy/image/rootfs.sh "$binaries" "$work"
# The agent is an ordinary user; the file brings its one capability, because Kubernetes
# gives a container that is not root none that it could use.
deploy/image/oci.py "$work" "$output" --name "$name" --user 64870 \
  --entrypoint /usr/bin/viaductctl \
  --capability /usr/bin/viaduct-agent=cap_net_admin \
  --label "org.opencontainers.image.title=viaduct" \
  --label "org.opencontainers.image.description=Overlay network for Kubernetes and plain Linux hosts" \
  --label "org.opencontainers.image.source=https://github.com/viaduct-net/viaduct" \
  --label "org.opencontainers.image.licenses=Apache-2.0" \
  --label "org.opencontainers.image.version=$version" \
  --label "org.opencontainers.image.revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
echo "$output: $name, $(stat -c %s "$output") bytes"
