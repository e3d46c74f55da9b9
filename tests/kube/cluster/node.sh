#!/usr/bin/env bash
# The first process of a node: makes it look like a machine of its own, then runs
# containerd, kubelet and kube-proxy, and starts them again when they end, as an init
# system does. SIGKILL is its power switch.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
node=$1
state=$RUN/$node

# Into cgroups of its own first: the cgroup namespace makes the current ones its root.
# (Not earlier: unshare, which waits outside, must not be in them.)
if [ "${2:-}" != in-its-cgroup ]; then
  while read -r group; do
    mkdir -p "$group/$node"
    for file in cpuset.cpus cpuset.mems; do # cgroup v1 wants them before any process
      if [ -e "$group/$node/$file" ]; then cat "$group/$file" >"$group/$node/$file"; fi
    done
    echo 0 >"$group/$node/cgroup.procs"
  done <"$RUN/cgroups"
  exec unshare --cgroup "$0" "$node" in-its-cgroup
fi

BIN=$(cat "$RUN/home")/bin
PATH=$BIN:$PATH
hostname "$node"
mount --make-rshared /

# This network namespace's sysfs, and the cgroups as seen from here.
hierarchies=$(awk '$3 ~ /^cgroup2?$/ {print $2, $3}' /proc/mounts)
mount -t sysfs sysfs /sys
if [ "$hierarchies" = "/sys/fs/cgroup cgroup2" ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # A group with processes in it hands no controllers down.
  mkdir -p /sys/fs/cgroup/init
  while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs || :; done </sys/fs/cgroup/cgroup.procs
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
  done
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while read -r where kind; do
    mkdir -p "$where"
    name=${where##*/}
    case $kind/$name in
    cgroup2/*) mount -t cgroup2 cgroup2 "$where" ;;
    */systemd) mount -t cgroup -o none,name=systemd cgroup "$where" ;;
    *) mount -t cgroup -o "$name" cgroup "$where" ;;
    esac
  done <<<"$hierarchies"
fi

# The machine's files, copy on write; containers need a file system that is no overlay.
for part in etc var opt; do
  mkdir -p "$state/disk/$part" "$state/disk/.$part"
  mount -t overlay overlay -o "lowerdir=/$part,upperdir=$state/disk/$part,workdir=$state/disk/.$part" "/$part"
done
for name in $(awk '$2 ~ "^/run/netns/" {print $2}' /proc/mounts); do umount -l "$name"; done
mount -t tmpfs -o mode=755 tmpfs /run
[ -L /var/run ] || mount --rbind /run /var/run
mkdir -p /run/lock /etc/containerd /etc/kubernetes /etc/cni/net.d /opt/cni/bin
for part in lib/containerd lib/kubelet log; do
  mkdir -p "$state/disk/${part##*/}" "/var/$part"
  mount --bind "$state/disk/${part##*/}" "/var/$part"
done
mount --make-rshared /
# The kubelet sets these for the whole machine: it gets files that nobody reads.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  copy=$state/${setting%=*}
  mkdir -p "${copy%/*}"
  echo "${setting#*=}" >"$copy"
  mount --bind "$copy" "/proc/sys/${setting%=*}"
done

cp "$(cat "$RUN/home")"/cni/* /opt/cni/bin/
echo "nameserver $GATEWAY" >/etc/kubernetes/resolv.conf
printf '127.0.0.1 localhost\n%s %s\n' "$(address_of "$node")" "$node" >/etc/hosts

cat >/etc/containerd/config.toml <<CONF
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/probe:1"
[plugins.'io.containerd.cri.v1.runtime']
  # The machine may not have CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "$BIN/runc"
  SystemdCgroup = false
CONF
cat >/etc/kubernetes/kubelet.yaml <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
maxPods: 130
clusterDomain: cluster.local
clusterDNS: [$DNS_SERVICE]
resolvConf: /etc/kubernetes/resolv.conf
# The disk is the machine's, not the node's.
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
CONF
cat >/etc/kubernetes/proxy.yaml <<CONF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/pki/proxy.conf}
hostnameOverride: $node
mode: $PROXY
clusterCIDR: $PODS
oomScoreAdj: 0
# What a namespace may not set.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
CONF

# keep NAME COMMAND...: its pid in this namespace is in /run/NAME.pid; while there is a
# /run/NAME.stop it stays down.
keep() {
  local name=$1
  shift
  (
    while :; do
      "$@" >>"/var/log/$name.log" 2>&1 </dev/null &
      echo $! >"/run/$name.pid"
      wait $! || echo "$name ended with $?" >>"/var/log/$name.log"
      while [ -e "/run/$name.stop" ]; do sleep 0.2; done
      sleep 0.5
    done
  ) &
}
keep containerd containerd
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$RUN"/images/*.tar; do ctr -n k8s.io images import "$image" >/dev/null; done
keep kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig="$RUN/pki/$node.conf" \
  --hostname-override="$node" --node-ip="$(address_of "$node")"
keep kube-proxy kube-proxy --config=/etc/kubernetes/proxy.yaml
while :; do wait -n || sleep 1; done
