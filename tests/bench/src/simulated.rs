//! A large cluster of which only the records exist.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use viaduct_datastore::{Records, StoreOptions, open};
use viaduct_model::record::{Backend, Overlay, Underlay};
use viaduct_model::{Block, BlockUsage, Cidr, Claim, MacAddr, Node, NodeName, PerFamily};

/// How many records are written at the same time.
pub(crate) const WIDTH: usize = 32;

/// One peer.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The node's name.
    pub name: NodeName,
    /// Where tunnels to it end: nowhere, but there is a route that way.
    pub underlay: Ipv4Addr,
    /// Its VTEP.
    pub mac: MacAddr,
    /// Its block, a /26.
    pub block: Cidr,
    /// Its own overlay address.
    pub overlay: Ipv4Addr,
}

/// `count` peers with a /26 each, from `first_block` on.
///
/// # Errors
/// When a name or an address cannot be.
pub(crate) fn peers(count: u32, first_block: Ipv4Addr) -> Result<Vec<Peer>> {
    (0..count)
        .map(|number| {
            let name: NodeName = format!("simulated-{number:04}").parse()?;
            let overlay = Ipv4Addr::from(u32::from(first_block) + number * 64);
            Ok(Peer {
                mac: MacAddr::for_vtep(&name),
                underlay: Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 30, 0, 1)) + number),
                block: Cidr::new(IpAddr::V4(overlay), 26)?,
                overlay,
                name,
            })
        })
        .collect()
}

/// Writes the peers' Node and Block records, as agents and a controller would.
///
/// # Errors
/// What the store said.
pub(crate) fn write(store: &StoreOptions, peers: &[Peer]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let records = Records::new(open(store).await?);
        for some in peers.chunks(WIDTH) {
            let writes = some.iter().map(|peer| write_one(&records, peer));
            futures_util::future::try_join_all(writes).await?;
        }
        Ok(())
    })
}

async fn write_one(records: &Records, peer: &Peer) -> Result<()> {
    write_node(records, peer).await?;
    write_block(records, peer).await
}

/// Writes a peer's Node record, as its agent would.
///
/// # Errors
/// What the store said.
pub(crate) async fn write_node(records: &Records, peer: &Peer) -> Result<()> {
    let node = Node {
        incarnation: incarnation(peer),
        underlay: Underlay {
            v4: Some(peer.underlay),
            v6: None,
        },
        underlay_networks: vec!["172.30.0.0/16".parse()?],
        backend: Backend::Vxlan {
            vni: 1,
            port: 8472,
            vtep_mac: peer.mac,
        },
        overlay: Overlay {
            v4: Some(peer.overlay),
            v6: None,
        },
        mtu: 1450,
        labels: Default::default(),
        extra: Default::default(),
    };
    let created = records.create(peer.name.as_str(), &node, None).await;
    created
        .map(drop)
        .with_context(|| format!("node {}", peer.name))
}

/// Writes a peer's Block record, as a controller would.
///
/// # Errors
/// What the store said.
pub(crate) async fn write_block(records: &Records, peer: &Peer) -> Result<()> {
    let block = Block::new(peer.block, "default".parse()?, peer.name.clone(), 1);
    let name = peer.block.record_name();
    let created = records.create(&name, &block, None).await;
    created
        .map(drop)
        .with_context(|| format!("block {}", peer.block))
}

/// Writes a peer's Claim, as its agent would that has what it wants.
///
/// # Errors
/// What the store said.
pub(crate) async fn write_claim(records: &Records, peer: &Peer) -> Result<()> {
    let block = peer.block.record_name();
    let claim = Claim {
        incarnation: incarnation(peer),
        host: peer.name.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        wants: PerFamily { v4: 1, v6: 0 },
        gives: Default::default(),
        holds: [(block.clone(), 1)].into(),
        renews: Default::default(),
        ended: 0,
        blocks: [(block, BlockUsage { used: 0, free: 63 })].into(),
        conditions: Vec::new(),
        extra: Default::default(),
    };
    let created = records.create(peer.name.as_str(), &claim, None).await;
    created
        .map(drop)
        .with_context(|| format!("claim {}", peer.name))
}

fn incarnation(peer: &Peer) -> String {
    format!("simulated-{}", peer.mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_peers_share_anything() {
        let peers = peers(2000, Ipv4Addr::new(10, 72, 0, 0)).unwrap();
        let mut keys: Vec<String> = peers
            .iter()
            .flat_map(|p| {
                [
                    p.underlay.to_string(),
                    p.mac.to_string(),
                    p.block.to_string(),
                ]
            })
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 6000);
        assert_eq!(peers[1999].block.to_string(), "10.73.243.192/26");
    }
}
