//! A VXLAN tunnel made by hand with `ip` and `bridge`.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use viaduct_lab::command::{self, ip_batch};
use viaduct_lab::{Node, netns, underlay};
use viaduct_model::MacAddr;

/// Under what name the tunnel stands in its namespace.
pub(crate) const DEVICE: &str = "vx0";
/// The MTU of the tunnel and of pods, on an underlay of 1500 bytes.
pub(super) const MTU: u32 = 1450;

/// The tunnel's device on a node; peers come apart.
///
/// # Errors
/// What `ip` said.
pub(crate) fn device(node: &Node, overlay: Ipv4Addr, mac: MacAddr) -> Result<()> {
    let script = format!(
        "link add {DEVICE} address {mac} mtu {MTU} type vxlan id 1 dstport 8472 \
         local {local} dev {link} nolearning\n\
         addr add {overlay}/32 dev {DEVICE}\n\
         link set {DEVICE} up\n",
        local = node.address(),
        link = underlay::NODE_LINK,
    );
    netns::within(node.netns(), || {
        ip_batch(&script)?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding")
    })
    .with_context(|| format!("a tunnel by hand on {}", node.name()))
}

/// What a node with the device needs to reach a peer's block.
///
/// # Errors
/// What `ip` or `bridge` said.
pub(super) fn peer(
    node: &Node,
    overlay: Ipv4Addr,
    mac: MacAddr,
    underlay: Ipv4Addr,
    block: Ipv4Addr,
) -> Result<()> {
    netns::within(node.netns(), || {
        ip_batch(&format!(
            "neigh add {overlay} lladdr {mac} dev {DEVICE} nud permanent\n\
             route add {block}/24 via {overlay} dev {DEVICE} onlink\n"
        ))?;
        let (mac, underlay) = (mac.to_string(), underlay.to_string());
        command::run(
            "bridge",
            ["fdb", "append", &mac, "dev", DEVICE, "dst", &underlay],
        )
        .map(drop)
    })
}

pub(super) fn plus(address: Ipv4Addr, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) + offset)
}
