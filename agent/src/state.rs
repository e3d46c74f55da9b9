//! The plain data that the agent's tasks tell each other. Each value has one
//! task that owns it and publishes it through a `tokio::sync::watch` channel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::isolation::Foreign;
use viaduct_model::{Backend, BlockUsage, Cidr, ClusterView, Endpoint, MacAddr, NodeName};

/// The network that carries the tunnels, as found on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayLink {
    /// The device's name.
    pub name: String,
    /// The device's index in this network namespace.
    pub index: u32,
    /// The address that tunnels from this node begin at.
    pub address: Ipv4Addr,
    /// The address that peers reach this node at; differs behind a 1:1 NAT
    /// (`--public-ip`).
    pub public_address: Ipv4Addr,
    /// The on-link prefixes of the device.
    pub networks: Vec<Cidr>,
    /// The device's MAC; `None` where no ARP is spoken.
    pub mac: Option<MacAddr>,
    /// The device's MTU in bytes.
    pub mtu: u32,
}

/// This node as its agent runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// The node's name.
    pub name: NodeName,
    /// The network under the tunnels.
    pub underlay: UnderlayLink,
    /// How it carries pod traffic, as its record tells peers.
    pub carrier: Backend,
    /// Whether adjacent peers get plain routes beside a tunnel for the others.
    pub direct_routing: bool,
    /// Whether pods' packets to the outside get an address of the node, so that what
    /// comes back is forwarded by the underlay's device.
    pub masquerade: bool,
    /// The MTU of the tunnel and of pods, in bytes.
    pub mtu: u32,
    /// The node's own address among the pods'; `None` until it owns a block.
    /// Once taken it stays as long as the node owns the block that it is in.
    pub overlay: Option<Ipv4Addr>,
}

/// All that the dataplane is decided from, but for the endpoints. Published only
/// once the datastore has said "here is everything".
#[derive(Debug, Clone, PartialEq)]
pub struct NodeState {
    /// This node.
    pub local: LocalNode,
    /// The cluster.
    pub view: Arc<ClusterView>,
    /// The peers' underlay addresses that the kernel would send to over the underlay's
    /// device without a next hop; asked for only where plain routes are wanted.
    pub on_link: Arc<BTreeSet<Ipv4Addr>>,
    /// Blocks that this node holds although an older record names another owner.
    pub disputed: Arc<BTreeSet<Cidr>>,
    /// Blocks that this node held once and holds no more.
    pub lost: Arc<BTreeSet<Cidr>>,
}

/// What is the matter with the underlay. Owned by the steward.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlayTrouble {
    /// What keeps the node from being ready, one sentence each.
    pub problems: Vec<String>,
    /// What is worth knowing all the same, one sentence each.
    pub warnings: Vec<String>,
}

/// The attachments of this node by their host end's device name, as the ledger
/// holds them. Owned by the CNI server.
pub type Endpoints = Arc<BTreeMap<String, Endpoint>>;

/// How the kernel compares with what it should be. Owned by the reconciler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataplaneReport {
    /// Whether the last reconcile left nothing different.
    pub verified: bool,
    /// Whether the node's own overlay address stood in the kernel, verified, so
    /// that pods can be wired. Does not go back to false because one object fails.
    pub can_wire: bool,
    /// What differs still, one sentence each: object and reason.
    pub problems: Vec<String>,
    /// What of the cluster is not put into the kernel at all, one sentence each:
    /// peers, pools and blocks that would do harm. Not this node's fault.
    pub refusals: Vec<String>,
    /// Routes of others that lead into this network's blocks, one sentence each.
    pub conflicts: Vec<String>,
    /// Peers that have no route because they are not adjacent, one sentence each.
    pub not_adjacent: Vec<String>,
    /// Reconciles so far.
    pub reconciles: u64,
    /// Objects that were repaired so far, that is changed though nothing but the
    /// kernel had changed.
    pub repairs: u64,
}

/// How this node's addresses are used. Owned by the CNI server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressUsage {
    /// Used and free by block.
    pub blocks: BTreeMap<Cidr, BlockUsage>,
    /// Until when addresses cool down, in milliseconds of the clock since boot, for those
    /// that did when this was published; they are among the free ones.
    pub cooling: BTreeMap<Cidr, Vec<u64>>,
    /// Whether an ADD found no free address since the last block came.
    pub starved: bool,
    /// How many ADDs wait for an address.
    pub waiting: u32,
    /// Blocks that nothing is handed out from.
    pub draining: BTreeSet<Cidr>,
    /// The round of the tenure that this goes by.
    pub heeds: u64,
    /// The node's own address, whose block is not given back.
    pub keep: Option<IpAddr>,
    /// Pods that are cut off because their address belongs to another node, by link.
    pub foreign: BTreeMap<String, Foreign>,
}
