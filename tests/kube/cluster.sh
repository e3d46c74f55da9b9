#!/usr/bin/env bash
# A real Kubernetes cluster of three nodes on this machine, in namespaces of its own.
#
#   cluster.sh up [COMMAND...]   start it without a network; with a command it lasts as long
#                                as the command, whatever ends that
#   cluster.sh load TAR          import an image on every node
#   cluster.sh on NODE COMMAND...    run something in a node (or in `room`)
#   cluster.sh kubectl ...       talk to it as its administrator
#   cluster.sh power on|off NODE
#   cluster.sh control start|stop|kill [PROGRAM...]
#   cluster.sh down              end it; nothing is left behind, also of one that was killed
#
# VIADUCT_KUBE_PROXY=nftables for the other mode of kube-proxy; VIADUCT_KUBE_RUN for a
# second cluster beside the first; VIADUCT_KUBE_NODES for others than "n1 n2 n3".
set -euo pipefail
. "$(dirname "$0")/cluster/settings.sh"

in_room() {
  local pid
  pid=$(cat "$RUN/pid" 2>/dev/null) && [ -d "/proc/$pid" ] || {
    echo "no cluster is up in $RUN: cluster.sh up" >&2
    exit 1
  }
  nsenter -t "$pid" --mount --net --pid --ipc --uts --wd=/ "$@"
}

# The process that the cluster lives in, if it is still that one.
alive() {
  local pid
  pid=$(cat "$RUN/pid" 2>/dev/null) && grep -aqs "cluster/room.sh" "/proc/$pid/cmdline" && echo "$pid"
}

down() {
  local pid group
  if pid=$(alive); then
    kill -KILL "$pid"
    # It ends when everything below it has.
    while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.05; done
  fi
  if [ -f "$RUN/cgroups" ]; then
    while read -r group; do
      for _ in $(seq 50); do
        [ -d "$group" ] || break
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
      done
    done <"$RUN/cgroups"
  fi
  rm -rf "$RUN"
}

# A directory of ours in each cgroup hierarchy, below where we are now.
make_groups() {
  local _ where kind rest mine name
  while read -r _ where kind rest; do
    case $kind in
    cgroup2) mine=$(sed -n 's/^0:://p' /proc/self/cgroup) ;;
    cgroup)
      name=${where##*/}
      mine=$(awk -F: -v n="$name" '{sub("name=", "", $2)} index(","$2",", ","n",") {print $3; exit}' /proc/self/cgroup)
      ;;
    *) continue ;;
    esac
    name=$where${mine%/}/$GROUP
    mkdir -p "$name"
    for file in cpuset.cpus cpuset.mems; do
      if [ -e "$name/$file" ]; then cat "$name/../$file" >"$name/$file"; fi
    done
    if [ -s "$name/cgroup.controllers" ]; then
      for controller in $(cat "$name/cgroup.controllers"); do echo "+$controller" >"$name/cgroup.subtree_control" || :; done
    fi
    echo "$name" >>"$RUN/cgroups"
  done </proc/mounts
}

up() {
  [ "$(id -u)" -eq 0 ] || { echo "a kubelet needs root: run this as root" >&2; exit 1; }
  if alive >/dev/null; then
    echo "a cluster is up in $RUN already: cluster.sh down, or another VIADUCT_KUBE_RUN" >&2
    exit 1
  fi
  local home
  home=$("$here/../build.sh")
  down # what a killed one left
  mkdir -p "$RUN"
  echo "$home" >"$RUN/home"
  make_groups
  (cd "$here/../go/probe" && CGO_ENABLED=0 go build -trimpath -o "$RUN/probe" .)
  "$here/certificates.sh"
  "$here/images.sh"
  # With a command the cluster dies with this process, else it stays.
  local tie=()
  [ $# -eq 0 ] || tie=(setpriv --pdeathsig KILL)
  setsid "${tie[@]}" unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc --propagation private \
    "$here/room.sh" >"$RUN/room.log" 2>&1 </dev/null &
  local outer=$! child
  for _ in $(seq 600); do
    child=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null || :)
    child=${child// /}
    if [ -n "$child" ] && [ -e "$RUN/ready" ]; then
      echo "$child" >"$RUN/pid"
      break
    fi
    [ -d "/proc/$outer" ] || break
    sleep 0.1
  done
  [ -f "$RUN/pid" ] || {
    echo "the cluster does not start:" >&2
    tail -n 5 "$RUN/room.log" >&2
    kill -KILL "$outer" 2>/dev/null || :
    exit 1
  }
  for node in $NODES; do
    until kubectl get node "$node" >/dev/null 2>&1; do
      alive >/dev/null || exit 1
      sleep 0.2
    done
  done
  [ $# -eq 0 ] || {
    trap down EXIT
    "$@"
  }
}

kubectl() { in_room "$(cat "$RUN/home")/bin/kubectl" --kubeconfig "$RUN/pki/admin.conf" "$@"; }

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
up) up "$@" ;;
down) down ;;
kubectl) kubectl "$@" ;;
power) in_room "$here/power.sh" "$@" ;;
control) in_room "$here/control-plane.sh" "$@" ;;
load)
  archive=$(realpath "$1")
  for node in $NODES; do
    said=$("$0" on "$node" "$(cat "$RUN/home")/bin/ctr" -n k8s.io images import "$archive" 2>&1) || {
      printf '%s does not take %s: %s\n' "$node" "$archive" "$said" >&2
      exit 1
    }
  done
  ;;
on)
  node=$1
  shift
  if [ "$node" = room ]; then in_room "$@"; exit; fi
  in_room nsenter -t "$(cat "$RUN/$node/pid")" --mount --uts --ipc --net --pid --cgroup --wd=/ "$@"
  ;;
*) sed -n '2,/^set/s/^# \?//p' "$0" >&2 && exit 2 ;;
esac
