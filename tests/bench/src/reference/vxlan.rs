//! A VXLAN with routed pods between two nodes, made by hand: the least that
//! carries the same traffic, with the same kinds of links and namespaces.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use viaduct_lab::command::ip_batch;
use viaduct_lab::{Node, netns, underlay};
use viaduct_model::MacAddr;

/// Under what name the tunnel stands in its namespace.
pub(crate) const DEVICE: &str = "vx0";
/// The MTU of the tunnel and of pods, on an underlay of 1500 bytes.
const MTU: u32 = 1450;

/// A pod of the hand-made network.
#[derive(Debug, Clone)]
pub(crate) struct HandMadePod {
    /// Its namespace.
    pub netns: PathBuf,
    /// Its address.
    pub ip: Ipv4Addr,
}

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

/// Two nodes with a pod each.
///
/// # Errors
/// What `ip` said.
pub(crate) fn two_nodes(nodes: [&Node; 2]) -> Result<[HandMadePod; 2]> {
    let blocks = [97, 98].map(|third| Ipv4Addr::new(10, 97, third, 0));
    let overlays = blocks.map(|block| plus(block, 1));
    let macs = nodes.map(|node| MacAddr::derived("bench", node.name()));
    for (here, there) in [(0, 1), (1, 0)] {
        device(nodes[here], overlays[here], macs[here])?;
        let peer = format!(
            "neigh add {overlay} lladdr {mac} dev {DEVICE} nud permanent\n\
             route add {block}/24 via {overlay} dev {DEVICE} onlink\n",
            overlay = overlays[there],
            mac = macs[there],
            block = blocks[there],
        );
        netns::within(nodes[here].netns(), || {
            ip_batch(&peer)?;
            let mac = macs[there].to_string();
            let underlay = nodes[there].address().to_string();
            viaduct_lab::command::run(
                "bridge",
                ["fdb", "append", &mac, "dev", DEVICE, "dst", &underlay],
            )
            .map(drop)
        })?;
    }
    Ok([
        pod(nodes[0], plus(blocks[0], 10))?,
        pod(nodes[1], plus(blocks[1], 10))?,
    ])
}

/// A pod with a /32, an on-link gateway and permanent neighbours: no bridge, no ARP.
fn pod(node: &Node, ip: Ipv4Addr) -> Result<HandMadePod> {
    let name = format!("{}-byhand", node.name());
    let path = netns::add(&name)?;
    let host_mac = MacAddr::derived("bench-host", &name);
    let pod_mac = MacAddr::derived("bench-pod", &name);
    netns::within(node.netns(), || {
        ip_batch(&format!(
            "link add pod0 address {host_mac} mtu {MTU} type veth \
             peer name eth0 address {pod_mac} mtu {MTU} netns {name}\n\
             link set pod0 up\n"
        ))
    })?;
    netns::within(&path, || {
        ip_batch(&format!(
            "addr add {ip}/32 dev eth0\n\
             link set eth0 up\n\
             neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent\n\
             route add default via 169.254.1.1 dev eth0 onlink\n"
        ))
    })?;
    netns::within(node.netns(), || {
        ip_batch(&format!(
            "neigh add {ip} lladdr {pod_mac} dev pod0 nud permanent\n\
             route add {ip}/32 dev pod0 scope link\n"
        ))
    })?;
    Ok(HandMadePod { netns: path, ip })
}

fn plus(address: Ipv4Addr, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) + offset)
}
