//! What to do to the kernel, as plain data.

use std::fmt;
use std::net::Ipv4Addr;

use viaduct_model::MacAddr;

use super::objects::{Address, FdbEntry, LinkKind, LinkName, Route, RouteKind, Settings};

/// One change to one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Deletes a link by its index, lest a new link of that name is hit.
    RemoveLink {
        /// Its name.
        link: LinkName,
        /// Its index.
        index: u32,
    },
    /// Creates a tunnel's link, down.
    CreateTunnel {
        /// Its name.
        link: LinkName,
        /// What it is.
        kind: LinkKind,
        /// Its MAC, if it has one.
        mac: Option<MacAddr>,
        /// Its MTU in bytes.
        mtu: u32,
    },
    /// Sets all IPv4 settings of a link.
    Configure {
        /// Its name.
        link: LinkName,
        /// The settings.
        settings: Settings,
    },
    /// Makes a link that is not ours forward, and changes nothing else about it.
    Forward {
        /// Its name.
        link: LinkName,
    },
    /// Makes a link believe no router advertisement.
    RefuseRouterAdvertisements {
        /// Its name.
        link: LinkName,
    },
    /// Makes a link generate no IPv6 address.
    GenerateNoAddress {
        /// Its name.
        link: LinkName,
    },
    /// Sets a link up, and what else is given.
    SetLink {
        /// Its name.
        link: LinkName,
        /// Its MAC.
        mac: Option<MacAddr>,
        /// Its MTU in bytes.
        mtu: Option<u32>,
    },
    /// Adds an address.
    AddAddress(Address),
    /// Adds a forwarding entry, in place of another for the same MAC.
    PutFdb {
        /// The link.
        link: LinkName,
        /// The MAC.
        mac: MacAddr,
        /// The underlay address.
        remote: Ipv4Addr,
    },
    /// Adds a permanent neighbour, in place of another for the same address.
    PutNeighbour {
        /// The link.
        link: LinkName,
        /// The address.
        address: Ipv4Addr,
        /// The MAC.
        mac: MacAddr,
    },
    /// Adds a route, before any other to the same destination.
    AddRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Removes a neighbour.
    RemoveNeighbour {
        /// The link.
        link: LinkName,
        /// The address.
        address: Ipv4Addr,
    },
    /// Removes a forwarding entry.
    RemoveFdb(FdbEntry),
    /// Removes an address.
    RemoveAddress(Address),
}

/// Changes in the order in which they must be made.
pub type Plan = Vec<Op>;

impl Op {
    /// The link without which the change cannot be made.
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Op::RemoveLink { link, .. }
            | Op::CreateTunnel { link, .. }
            | Op::Configure { link, .. }
            | Op::Forward { link }
            | Op::RefuseRouterAdvertisements { link }
            | Op::GenerateNoAddress { link }
            | Op::SetLink { link, .. }
            | Op::PutFdb { link, .. }
            | Op::PutNeighbour { link, .. }
            | Op::RemoveNeighbour { link, .. } => Some(link),
            Op::AddAddress(a) | Op::RemoveAddress(a) => Some(&a.link),
            Op::AddRoute(r) | Op::RemoveRoute(r) => r.link.as_ref(),
            Op::RemoveFdb(f) => Some(&f.link),
        }
    }
}

impl fmt::Display for Op {
    /// The object and what is to be done to it, as the beginning of a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::RemoveLink { link, .. } => write!(f, "link {link} to be removed"),
            Op::CreateTunnel { link, kind, .. } => {
                write!(f, "link {link} to be created")?;
                match kind {
                    LinkKind::Vxlan(vxlan) => {
                        write!(f, " (VXLAN, VNI {}, port {})", vxlan.vni, vxlan.port)
                    }
                    LinkKind::Ipip(_) => f.write_str(" (IPIP)"),
                    LinkKind::Veth | LinkKind::Other(_) => Ok(()),
                }
            }
            Op::Forward { link } => write!(f, "link {link} to forward"),
            Op::Configure { link, settings } => write!(
                f,
                "settings of link {link} to be forwarding={}, rp_filter={}, proxy_arp={}",
                u8::from(settings.forwarding),
                settings.rp_filter,
                u8::from(settings.proxy_arp)
            ),
            Op::RefuseRouterAdvertisements { link } => {
                write!(f, "accept_ra of link {link} to be 0")
            }
            Op::GenerateNoAddress { link } => {
                write!(f, "IPv6 address generation of link {link} to be none")
            }
            Op::SetLink { link, mac, mtu } => {
                write!(f, "link {link} to be up")?;
                if let Some(mac) = mac {
                    write!(f, ", with MAC {mac}")?;
                }
                if let Some(mtu) = mtu {
                    write!(f, ", with MTU {mtu}")?;
                }
                Ok(())
            }
            Op::AddAddress(a) => {
                let (address, len, link) = (a.address, a.prefix_len, &a.link);
                write!(f, "address {address}/{len} to be added to link {link}")
            }
            Op::RemoveAddress(a) => {
                let (address, len, link) = (a.address, a.prefix_len, &a.link);
                write!(f, "address {address}/{len} to be removed from link {link}")
            }
            Op::PutFdb { link, mac, remote } => {
                write!(f, "FDB entry {mac} on link {link} to lead to {remote}")
            }
            Op::RemoveFdb(e) => {
                write!(f, "FDB entry {} on link {} to be removed", e.mac, e.link)
            }
            Op::PutNeighbour { link, address, mac } => {
                write!(f, "neighbour {address} on link {link} to have MAC {mac}")
            }
            Op::RemoveNeighbour { link, address } => {
                write!(f, "neighbour {address} on link {link} to be removed")
            }
            Op::AddRoute(route) => write!(f, "{route} to be added"),
            Op::RemoveRoute(route) => write!(f, "{route} to be removed"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => f.write_str("route")?,
            RouteKind::Blackhole => f.write_str("blackhole route")?,
            RouteKind::Other(kind) => write!(f, "route of type {kind}")?,
        }
        write!(f, " {}", self.destination)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(link) = &self.link {
            write!(f, " dev {link}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}
