//! The kernel's objects as plain data: what should be there ([`Desired`]) and what
//! is ([`Actual`]), in the same words, so that they can be compared.
//!
//! Links are named, never numbered: an index changes when a link is made anew.
//! Nothing here knows netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use viaduct_model::attachment::LINK_PREFIX;
use viaduct_model::{Cidr, MacAddr};

use super::host::Host;

/// A device's name; cheap to clone, since every object carries one.
pub type LinkName = Arc<str>;

/// The VXLAN link for an IPv4 underlay.
pub const VXLAN_LINK: &str = "via.vx4";

/// The IPIP link.
pub const IPIP_LINK: &str = "via.ipip";

/// The protocol number that marks a route as ours.
pub const ROUTE_PROTOCOL: u8 = 87;

/// Whether the link is, by its name, a tunnel of ours: one that belongs to the node and
/// not to a pod.
pub fn is_tunnel(link: &str) -> bool {
    is_ours(link) && link.contains('.')
}

/// Whether a device of this name is ours.
pub fn is_ours(link: &str) -> bool {
    link.starts_with(LINK_PREFIX)
}

/// Whether the link is, by its name, the host end of a pod.
pub fn is_host_end(link: &str) -> bool {
    is_ours(link) && !is_tunnel(link)
}

/// What makes a VXLAN link that one; none of it can be changed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The address that packets are sent from.
    pub local: Option<Ipv4Addr>,
    /// The index of the underlay's device.
    pub underlay: u32,
    /// Whether it learns where MACs are from what it receives.
    pub learning: bool,
}

/// What makes an IPIP link that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipip {
    /// The address that packets are sent from, and come to.
    pub local: Option<Ipv4Addr>,
    /// The one far end; with none, each route's next hop is it.
    pub remote: Option<Ipv4Addr>,
    /// The index of the device that it is bound to; ours are bound to none.
    pub underlay: u32,
    /// The time to live of what is sent; 0 takes over that of the packet inside.
    pub ttl: u8,
}

/// The kind of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// VXLAN.
    Vxlan(Vxlan),
    /// IPv4 in IPv4.
    Ipip(Ipip),
    /// One end of a veth pair.
    Veth,
    /// Any other, as the kernel names it.
    Other(String),
}

/// The settings of a link that are sysctls elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// IPv4 packets that come in here are forwarded.
    pub forwarding: bool,
    /// The source check of what comes in: 0 none, 1 strict, 2 loose (RFC 3704).
    pub rp_filter: u8,
    /// Whether it answers ARP for others.
    pub proxy_arp: bool,
}

/// The IPv6 settings of a link; absent where the link has no IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings6 {
    /// Whether router advertisements are believed.
    pub accept_ra: bool,
    /// Whether the kernel gives it a link-local address by itself.
    pub generates_addresses: bool,
}

/// A link as it should be. It should always be up, believe no router
/// advertisement and generate no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredLink {
    /// Tunnels are created when they are missing; a missing veth means that the pod
    /// is gone.
    pub kind: LinkKind,
    /// Its MAC, where that kind of link has one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its settings.
    pub settings: Settings,
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualLink {
    /// Its index.
    pub index: u32,
    /// Its kind.
    pub kind: LinkKind,
    /// Its MAC, if it has one of that length.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its IPv4 settings; absent where the link has no IPv4.
    pub settings: Option<Settings>,
    /// Its IPv6 settings.
    pub settings6: Option<Settings6>,
}

/// An IPv4 address on one of our links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: LinkName,
    /// The address.
    pub address: Ipv4Addr,
    /// The prefix length.
    pub prefix_len: u8,
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forwards it.
    Unicast,
    /// Drops it silently.
    Blackhole,
    /// Any other, by the kernel's number.
    Other(u8),
}

/// How far away a route's destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Anywhere.
    Universe,
    /// On the link itself.
    Link,
    /// Any other, by the kernel's number.
    Other(u8),
}

/// An IPv4 route in the main table with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: Cidr,
    /// What it does.
    pub kind: RouteKind,
    /// How far away that is.
    pub scope: Scope,
    /// The next hop.
    pub via: Option<Ipv4Addr>,
    /// Through which link.
    pub link: Option<LinkName>,
    /// Whether the next hop is taken to be on the link, whatever its address.
    pub onlink: bool,
    /// The source address of what this node itself sends there.
    pub source: Option<Ipv4Addr>,
    /// The metric; we always use 0.
    pub metric: u32,
    /// The MTU of the way there in bytes, where it is less than the link's.
    pub mtu: Option<u32>,
    /// The type of service it is for; we always use 0.
    pub tos: u8,
    /// Whether it has anything that we never give to a route.
    pub odd: bool,
}

impl Route {
    /// A route that forwards to `destination` through `link`.
    pub fn through(destination: Cidr, link: LinkName) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            scope: Scope::Link,
            via: None,
            link: Some(link),
            onlink: false,
            source: None,
            metric: 0,
            mtu: None,
            tos: 0,
            odd: false,
        }
    }

    /// The same by a next hop that the kernel must find to be on the link.
    pub fn via(self, via: Ipv4Addr) -> Self {
        Self {
            scope: Scope::Universe,
            via: Some(via),
            ..self
        }
    }

    /// The same by a next hop that is taken to be on the link.
    pub fn onlink_via(self, via: Ipv4Addr, source: Option<Ipv4Addr>) -> Self {
        Self {
            scope: Scope::Universe,
            via: Some(via),
            onlink: true,
            source,
            ..self
        }
    }

    /// The same with a smaller MTU than the link's, if one is given.
    pub fn with_mtu(self, mtu: Option<u32>) -> Self {
        Self { mtu, ..self }
    }

    /// A route that drops what goes to `destination`.
    pub fn blackhole(destination: Cidr) -> Self {
        Self {
            destination,
            kind: RouteKind::Blackhole,
            scope: Scope::Universe,
            via: None,
            link: None,
            onlink: false,
            source: None,
            metric: 0,
            mtu: None,
            tos: 0,
            odd: false,
        }
    }

    /// The least of all routes to `destination`, where a search in order begins.
    pub fn least_to(destination: Cidr) -> Self {
        Self {
            kind: RouteKind::Unicast,
            ..Self::blackhole(destination)
        }
    }

    /// Whether a request to delete this route could delete `other` instead.
    ///
    /// The kernel deletes the first route that fits, and takes what the request
    /// leaves out for "any" (fib_table_delete, fib_nh_match).
    pub fn deletion_fits(&self, other: &Route) -> bool {
        fn any_or_same<T: PartialEq>(mine: &Option<T>, other: &Option<T>) -> bool {
            mine.is_none() || mine == other
        }
        self.destination == other.destination
            && self.tos == other.tos
            && self.kind == other.kind
            && self.scope == other.scope
            && (self.metric == 0 || self.metric == other.metric)
            && (self.odd
                || any_or_same(&self.via, &other.via) && any_or_same(&self.link, &other.link))
            && any_or_same(&self.source, &other.source)
            && any_or_same(&self.mtu, &other.mtu)
    }
}

/// Which IPv4 address on which of our links.
pub type NeighbourKey = (LinkName, Ipv4Addr);

/// Which MAC on which of our links.
pub type FdbKey = (LinkName, MacAddr);

/// An entry of a VXLAN link's forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The link.
    pub link: LinkName,
    /// The MAC.
    pub mac: MacAddr,
    /// The underlay address that frames to it are sent to; absent in entries
    /// that are not about a tunnel over IPv4.
    pub remote: Option<Ipv4Addr>,
    /// Whether it is permanent and overrides nothing of the link's.
    pub plain: bool,
}

/// What should be in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links by name.
    pub links: BTreeMap<LinkName, DesiredLink>,
    /// Links that somebody else is working on: neither repaired nor swept.
    pub left_alone: BTreeSet<LinkName>,
    /// Addresses on our links.
    pub addresses: BTreeSet<Address>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours: the MAC of an address.
    pub neighbours: BTreeMap<NeighbourKey, MacAddr>,
    /// Forwarding entries: the underlay address of a MAC.
    pub fdb: BTreeMap<FdbKey, Ipv4Addr>,
    /// Links that are not ours and by which pods' packets come in as they are: they
    /// must forward. Nothing else about them is changed.
    pub forwarding: BTreeSet<LinkName>,
    /// Whether the node has an overlay address, so that pods can be wired once its
    /// addresses and its own blocks' routes stand.
    pub wires: bool,
    /// Whether what is missing here proves nothing, since records could not be
    /// read: then nothing is removed but what the ledger alone decides on.
    pub incomplete: bool,
    /// What was refused, one sentence each.
    pub refusals: Vec<String>,
    /// What is refused until more of the cluster was heard, one sentence each: records of
    /// different kinds are told one after the other.
    pub awaited: Vec<String>,
    /// Peers without a route because they are not adjacent, one sentence each.
    pub not_adjacent: Vec<String>,
}

/// As much of a link that is not ours as concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignLink {
    /// Its index.
    pub index: u32,
    /// Whether IPv4 packets that come in here are forwarded.
    pub forwarding: bool,
}

/// What is in the kernel of what is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// Links whose name is ours.
    pub links: BTreeMap<LinkName, ActualLink>,
    /// IPv4 addresses on them.
    pub addresses: BTreeSet<Address>,
    /// IPv4 routes of our protocol in the main table.
    pub routes: BTreeSet<Route>,
    /// Permanent IPv4 neighbours on our links.
    pub neighbours: BTreeMap<NeighbourKey, MacAddr>,
    /// Forwarding entries of our VXLAN links.
    pub fdb: BTreeSet<FdbEntry>,
    /// The links that are not ours.
    pub foreign: BTreeMap<LinkName, ForeignLink>,
    /// What the host has chosen for all links.
    pub host: Host,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_that_leaves_the_source_out_could_hit_the_successor() {
        let to: Cidr = "10.64.1.0/26".parse().unwrap();
        let via = Ipv4Addr::new(10, 64, 1, 0);
        let base = || Route::through(to, VXLAN_LINK.into());
        let old = base().onlink_via(via, None);
        let new = base().onlink_via(via, Some(Ipv4Addr::new(10, 64, 0, 0)));
        assert!(old.deletion_fits(&new));
        assert!(!new.deletion_fits(&old));
        assert!(!Route::blackhole(to).deletion_fits(&new));
        let elsewhere = base().onlink_via(Ipv4Addr::new(10, 64, 1, 1), None);
        assert!(!elsewhere.deletion_fits(&new));
    }
}
