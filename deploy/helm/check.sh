#!/usr/bin/env bash
# Renders the chart as each overlay would be and compares all objects with what kustomize
# makes of that overlay; then tries values that must be refused. KUBECTL says which kubectl.
set -euo pipefail
cd "$(dirname "$0")"
kubectl=${KUBECTL:-kubectl}
helm=$(./helm.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
render() { "$helm" template viaduct viaduct --kube-version 1.36.0 --namespace viaduct-system "$@"; }

# normalised FILE: its objects in one order and one way of writing, in the namespace that
# kustomize put them in. What only one of the two ways has is left out: the Namespace (Helm's
# --create-namespace), the hash in the names of ConfigMaps and the annotation in its place.
normalised() {
  local dir
  dir=$(mktemp -d "$work/XXXXXX")
  sed -E 's/\b(viaduct|viaduct-cni)-[bcdfghkmt2456789]{10}$/\1/' "$1" >"$dir/objects.yaml"
  cat >"$dir/kustomization.yaml" <<'KUSTOMIZATION'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: viaduct-system
resources: [objects.yaml]
sortOptions: {order: legacy}
patches:
- target: {kind: Namespace}
  patch: "{kind: any, metadata: {name: any}, $patch: delete}"
- target: {kind: DaemonSet|Deployment}
  patch: |
    apiVersion: apps/v1
    kind: any
    metadata: {name: any}
    spec: {template: {metadata: {annotations: {checksum/settings: null}}}}
KUSTOMIZATION
  "$kubectl" kustomize "$dir"
}

# same OVERLAY [HELM ARGUMENT...]
same() {
  local overlay=$1 crds=--include-crds
  shift
  [ "$overlay" = etcd ] && crds=--skip-crds
  render $crds "$@" >"$work/chart.yaml"
  "$kubectl" kustomize "../overlays/$overlay" >"$work/overlay.yaml"
  if ! diff -u --label "overlay $overlay" --label chart \
    <(normalised "$work/overlay.yaml") <(normalised "$work/chart.yaml"); then
    echo "the chart makes other objects than deploy/overlays/$overlay" >&2
    failed=1
  fi
}

# refused SENTENCE HELM ARGUMENT...: values that the schema must refuse, naming them.
refused() {
  local sentence=$1
  shift
  if render "$@" >"$work/out" 2>&1; then
    echo "the chart takes $*" >&2
    failed=1
  elif ! grep -qF -- "$sentence" "$work/out"; then
    echo "the refusal of $* does not say \"$sentence\":" >&2
    cat "$work/out" >&2
    failed=1
  fi
}

same vxlan
same ipip --set backend=ipip
same host-gw --set backend=host-gw
same publish --set nodeCidrs=publish
same adopt --set nodeCidrs=adopt
same etcd --set-string 'datastore=etcd://etcd.example:2379'
refused "at '/backend': value must be one of 'vxlan', 'ipip', 'host-gw'" --set backend=wireguard
refused "at '/pool': '10.244.0.0' does not match pattern" --set pool=10.244.0.0
refused "additional properties 'backnd' not allowed" --set backnd=ipip
refused "at '/controller/replicas': minimum: got 0, want 1" --set controller.replicas=0
refused "nodeCidrs: adopt is for datastore: kube only" --set nodeCidrs=adopt --set 'datastore=etcd://h'
exit $failed
