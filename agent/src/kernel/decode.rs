//! From netlink messages to plain data. Shared by the dump and by the monitor, so
//! that a notification and a listing of one object read the same.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoData, InfoIpTunnel, InfoKind, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
    RouteType,
};
use viaduct_model::{Cidr, MacAddr};

use crate::dataplane::objects::{
    ActualLink, ForeignLink, Ipip, LinkKind, LinkName, ROUTE_PROTOCOL, Route, RouteKind, Scope,
    Settings, Settings6, Vxlan,
};

/// `addr_gen_mode` "none" of `linux/if_link.h`.
pub(super) const ADDR_GEN_MODE_NONE: i32 = 1;

pub(super) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

/// The name in a link message.
pub(super) fn link_name(message: &LinkMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// A whole link; `None` when the message is about a part of one only.
pub(super) fn link(message: &LinkMessage) -> Option<(LinkName, ActualLink)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut found_mtu = false;
    let mut link = ActualLink {
        index: message.header.index,
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        settings: None,
        settings6: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => {
                link.mtu = *mtu;
                found_mtu = true;
            }
            LinkAttribute::LinkInfo(info) => link.kind = kind(info),
            LinkAttribute::AfSpecUnspec(families) => settings(families, &mut link),
            _ => {}
        }
    }
    let name = link_name(message)?.into();
    found_mtu.then_some((name, link))
}

fn kind(info: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other(String::new());
    for part in info {
        match part {
            LinkInfo::Kind(InfoKind::Veth) => return LinkKind::Veth,
            LinkInfo::Kind(other) => kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(data)) => return LinkKind::Vxlan(vxlan(data)),
            LinkInfo::Data(InfoData::IpTunnel(data))
                if kind == LinkKind::Other(InfoKind::IpIp.to_string()) =>
            {
                return LinkKind::Ipip(ipip(data));
            }
            _ => {}
        }
    }
    kind
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        underlay: 0,
        learning: false,
    };
    for part in data {
        match part {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(address) => vxlan.local = Some(*address),
            InfoVxlan::Link(index) => vxlan.underlay = *index,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            _ => {}
        }
    }
    vxlan
}

fn ipip(data: &[InfoIpTunnel]) -> Ipip {
    let mut ipip = Ipip {
        local: None,
        remote: None,
        underlay: 0,
        ttl: 0,
    };
    // The kernel shows what is not set as 0.0.0.0.
    let set = |address: &IpAddr| match address {
        IpAddr::V4(address) if !address.is_unspecified() => Some(*address),
        _ => None,
    };
    for part in data {
        match part {
            InfoIpTunnel::Local(address) => ipip.local = set(address),
            InfoIpTunnel::Remote(address) => ipip.remote = set(address),
            InfoIpTunnel::Link(index) => ipip.underlay = *index,
            InfoIpTunnel::Ttl(ttl) => ipip.ttl = *ttl,
            _ => {}
        }
    }
    ipip
}

/// As much of a link that is not ours as concerns us; `None` if it has no IPv4.
pub(super) fn foreign_link(message: &LinkMessage) -> Option<ForeignLink> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(families) => Some(families),
            _ => None,
        })?
        .iter()
        .find_map(|family| match family {
            AfSpecUnspec::Inet(parts) => parts.iter().find_map(|part| match part {
                AfSpecInet::DevConf(conf) => Some(conf.forwarding != 0),
                _ => None,
            }),
            _ => None,
        })
        .map(|forwarding| ForeignLink {
            index: message.header.index,
            forwarding,
        })
}

fn settings(families: &[AfSpecUnspec], link: &mut ActualLink) {
    for family in families {
        match family {
            AfSpecUnspec::Inet(parts) => {
                link.settings = parts.iter().find_map(|part| match part {
                    AfSpecInet::DevConf(conf) => Some(Settings {
                        forwarding: conf.forwarding != 0,
                        rp_filter: conf.rp_filter.try_into().unwrap_or(u8::MAX),
                        proxy_arp: conf.proxy_arp != 0,
                    }),
                    _ => None,
                });
            }
            AfSpecUnspec::Inet6(parts) => {
                link.settings6 = parts.iter().find_map(|part| match part {
                    AfSpecInet6::DevConf(conf) => Some(Settings6 {
                        accept_ra: conf.accept_ra != 0,
                        generates_addresses: conf.addr_gen_mode != ADDR_GEN_MODE_NONE,
                    }),
                    _ => None,
                });
                // The mode in force stands beside the settings when it is given.
                let mode = parts.iter().find_map(|part| match part {
                    AfSpecInet6::AddrGenMode(mode) => Some(i32::from(u8::from(mode))),
                    _ => None,
                });
                if let (Some(mode), Some(settings)) = (mode, &mut link.settings6) {
                    settings.generates_addresses = mode != ADDR_GEN_MODE_NONE;
                }
            }
            _ => {}
        }
    }
}

/// An IPv4 address: the link's index, the address, its prefix length.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, Ipv4Addr, u8)> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) if local => Some(*address),
                AddressAttribute::Address(IpAddr::V4(address)) if !local => Some(*address),
                _ => None,
            })
    };
    let address = find(true).or_else(|| find(false))?;
    Some((message.header.index, address, message.header.prefix_len))
}

/// A route of the main table (or of the one asked for), its link by index.
pub(super) struct MainRoute {
    pub(super) route: Route,
    pub(super) link: Option<u32>,
    pub(super) ours: bool,
}

pub(super) fn route(message: &RouteMessage) -> Option<MainRoute> {
    route_in(message, u32::from(RouteHeader::RT_TABLE_MAIN))
}

/// The same of any one table.
pub(super) fn route_in(message: &RouteMessage, of_table: u32) -> Option<MainRoute> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut via, mut link, mut source, mut metric, mut odd) = (None, None, None, 0, false);
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::CacheInfo(_) => {}
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(bytes) => mtu = Some(*bytes),
                        _ => odd = true,
                    }
                }
            }
            _ => odd = true,
        }
    }
    if table != of_table {
        return None;
    }
    let destination = Cidr::new(IpAddr::V4(destination), header.destination_prefix_length).ok()?;
    let route = Route {
        destination,
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::BlackHole => RouteKind::Blackhole,
            other => RouteKind::Other(other.into()),
        },
        scope: match header.scope {
            RouteScope::Universe => Scope::Universe,
            RouteScope::Link => Scope::Link,
            other => Scope::Other(other.into()),
        },
        via,
        link: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source,
        metric,
        mtu,
        tos: header.tos,
        odd,
    };
    Some(MainRoute {
        route,
        link,
        ours: u8::from(header.protocol) == ROUTE_PROTOCOL,
    })
}

/// An IPv4 neighbour: the link's index, the address, and the MAC if it is permanent.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(u32, Ipv4Addr, Option<MacAddr>)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let (mut address, mut lladdr) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(*v4),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    let permanent = message.header.state == NeighbourState::Permanent;
    Some((
        message.header.ifindex,
        address?,
        lladdr.filter(|_| permanent),
    ))
}

/// A forwarding entry, its link by index.
pub(super) struct Forwarding {
    pub(super) link: u32,
    pub(super) mac: MacAddr,
    pub(super) remote: Option<Ipv4Addr>,
    pub(super) plain: bool,
}

pub(super) fn fdb(message: &NeighbourMessage) -> Option<Forwarding> {
    if message.header.family != AddressFamily::Bridge {
        return None;
    }
    let (mut lladdr, mut remote, mut overrides) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => remote = Some(*v4),
            // The family is the bridge's, so the address is given as bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                remote = <[u8; 4]>::try_from(&bytes[..]).ok().map(Ipv4Addr::from);
            }
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::SourceVni(_)
            | NeighbourAttribute::IfIndex(_) => overrides = true,
            _ => {}
        }
    }
    Some(Forwarding {
        link: message.header.ifindex,
        mac: lladdr?,
        remote,
        plain: message.header.state == NeighbourState::Permanent && !overrides,
    })
}
