//! The network under the tunnels: a bridge in the lab's own namespace, with a
//! leg into each node.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

/// The bridge's device name.
pub const BRIDGE: &str = "underlay";
/// The bridge's address: where the nodes' default route leads, and where an etcd
/// or a relay listens.
pub const BRIDGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 29, 0, 1);
/// The network.
pub const NETWORK: &str = "172.29.0.0/24";
/// The device that a node has on it.
pub const NODE_LINK: &str = "eth0";

/// The underlay address of the node with this number, counted from 1.
///
/// # Errors
/// When the underlay is full.
pub fn address(number: usize) -> Result<Ipv4Addr> {
    let last = u8::try_from(number + 10)
        .ok()
        .filter(|last| *last <= 250)
        .context("the lab's underlay 172.29.0.0/24 is full")?;
    Ok(Ipv4Addr::new(172, 29, 0, last))
}

pub(crate) fn up() -> Result<()> {
    crate::command::ip_batch(&format!(
        "link add {BRIDGE} type bridge stp_state 0 forward_delay 0\n\
         addr add {BRIDGE_ADDRESS}/24 dev {BRIDGE}\n\
         link set {BRIDGE} up\n"
    ))
    .context("the underlay bridge")
}

/// Gives the node's namespace its leg on the underlay.
pub fn attach(node: &str, netns: &str, address: Ipv4Addr) -> Result<()> {
    let port = port(node);
    crate::command::ip_batch(&format!(
        "link add {port} type veth peer name {NODE_LINK} netns {netns}\n\
         link set {port} master {BRIDGE} up\n"
    ))?;
    crate::netns::within(&crate::netns::path(netns), || {
        crate::command::ip_batch(&format!(
            "addr add {address}/24 dev {NODE_LINK}\n\
             link set {NODE_LINK} up\n\
             route add default via {BRIDGE_ADDRESS} dev {NODE_LINK}\n"
        ))
    })
}

/// The bridge port of a node.
pub fn port(node: &str) -> String {
    format!("u-{node}")
}
