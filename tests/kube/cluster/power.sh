#!/usr/bin/env bash
# power.sh on|off NODE: runs in the room. A node is one process, node.sh, with network,
# mount, UTS, IPC, PID and cgroup namespaces of its own; without it nothing of it is left
# but its disk (power off), which it finds again (power on).
set -euo pipefail
. "$(dirname "$0")/settings.sh"
verb=$1 node=$2
state=$RUN/$node
mkdir -p "$state"

case $verb in
on)
  setsid nsenter --net="/run/netns/$node" \
    unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc --propagation private \
    "$here/node.sh" "$node" >>"$state/node.log" 2>&1 </dev/null 9>&- &
  echo $! >"$state/outer"
  outer=$!
  for _ in $(seq 100); do
    # The process that its namespaces belong to: the child of unshare.
    child=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null || :)
    if grep -aqs node.sh "/proc/${child// /}/cmdline" && grep -qs unshare "/proc/$outer/comm"; then
      echo "${child// /}" >"$state/pid"
      exit 0
    fi
    sleep 0.1
  done
  echo "node $node does not start: $(tail -n 3 "$state/node.log")" >&2
  exit 1
  ;;
off)
  pid=$(cat "$state/pid")
  rm -f "$state/pid"
  kill -KILL "$pid"
  while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.1; done
  # What a reboot loses besides: the links and rules of its network.
  ip -n "$node" -j link | jq -r '.[].ifname' | grep -v -e '^lo$' -e '^eth0$' |
    while read -r link; do ip -n "$node" link del "$link" 2>/dev/null || :; done
  nsenter --net="/run/netns/$node" nft flush ruleset
  ;;
*) echo "usage: power.sh on|off NODE" >&2 && exit 2 ;;
esac
