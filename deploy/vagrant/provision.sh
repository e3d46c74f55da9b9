#!/usr/bin/env bash
# provision.sh ADDRESS ETCD: makes this host a node whose underlay address is ADDRESS; the one
# whose address is ETCD runs etcd and the controller too. Run by Vagrant as root; may be run again.
set -euo pipefail
address=$1 etcd=$2
apt-get update -qq
apt-get install -qq -y nftables jq >/dev/null
cd /viaduct
id viaduct >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin viaduct
install -m 0755 target/release/viaduct-agent target/release/viaduct-controller target/release/viaductctl /usr/bin/
install -D -m 0755 target/release/viaduct /opt/cni/bin/viaduct
install -D -m 0644 deploy/base/10-viaduct.conflist /etc/cni/net.d/10-viaduct.conflist
mkdir -p /etc/viaduct
cat >/etc/viaduct/viaduct.env <<ENV
VIADUCT_DATASTORE=etcd://$etcd:2379
VIADUCT_BACKEND=vxlan
VIADUCT_POOL=10.64.0.0/16
VIADUCT_CAN_REACH=192.168.56.1
ENV
install -m 0644 deploy/systemd/viaduct-agent.service deploy/systemd/viaduct-controller.service /etc/systemd/system/
systemctl daemon-reload
if [ "$address" = "$etcd" ]; then
  apt-get install -qq -y etcd-server etcd-client >/dev/null
  cat >/etc/default/etcd <<ENV
ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$etcd:2379
ENV
  systemctl restart etcd
  systemctl enable --now viaduct-controller
fi
# Not waited for: the first node's etcd may be the last to come up.
systemctl enable viaduct-agent
systemctl restart --no-block viaduct-agent
