//! From plain data to netlink messages.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoIpTunnel, InfoKind,
    InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage as Message};
use viaduct_model::MacAddr;

use super::Request;
use crate::dataplane::objects::{
    Address, FdbEntry, Ipip, LinkKind, ROUTE_PROTOCOL, Route, RouteKind, Scope, Settings, Vxlan,
};

pub(super) fn remove_link(index: u32) -> Request {
    Request::new(Message::DelLink(link(index)), 0)
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// `None` for a kind that is not a tunnel of ours.
pub(super) fn create_tunnel(
    name: &str,
    kind: &LinkKind,
    mac: Option<MacAddr>,
    mtu: u32,
) -> Option<Request> {
    let info = match kind {
        LinkKind::Vxlan(vxlan) => vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vxlan_data(vxlan))),
        ],
        LinkKind::Ipip(ipip) => vec![
            LinkInfo::Kind(InfoKind::IpIp),
            LinkInfo::Data(InfoData::IpTunnel(ipip_data(ipip))),
        ],
        LinkKind::Veth | LinkKind::Other(_) => return None,
    };
    let mut message = link(0);
    message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Mtu(mtu)];
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Some(Request::new(
        Message::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    ))
}

fn vxlan_data(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
    ];
    data.extend(vxlan.local.map(InfoVxlan::Local));
    if vxlan.underlay != 0 {
        data.push(InfoVxlan::Link(vxlan.underlay));
    }
    data
}

fn ipip_data(ipip: &Ipip) -> Vec<InfoIpTunnel> {
    let mut data = vec![
        InfoIpTunnel::Protocol(IpProtocol::Ipip),
        InfoIpTunnel::Ttl(ipip.ttl),
        // Packets are never fragmented on the underlay; who sends too long ones is told.
        InfoIpTunnel::PMtuDisc(true),
    ];
    data.extend(ipip.local.map(|local| InfoIpTunnel::Local(local.into())));
    data.extend(
        ipip.remote
            .map(|remote| InfoIpTunnel::Remote(remote.into())),
    );
    if ipip.underlay != 0 {
        data.push(InfoIpTunnel::Link(ipip.underlay));
    }
    data
}

pub(super) fn set_link(index: u32, mac: Option<MacAddr>, mtu: Option<u32>) -> Request {
    let mut message = link(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    Request::new(Message::SetLink(message), 0)
}

/// `IFLA_INET_CONF` and its entries, of `linux/if_link.h` and `linux/ip.h`.
const INET_CONF: u16 = 1;
const CONF_FORWARDING: u16 = 1;
const CONF_PROXY_ARP: u16 = 3;
const CONF_RP_FILTER: u16 = 8;

pub(super) fn configure(index: u32, settings: &Settings) -> Request {
    let conf = [
        (CONF_FORWARDING, u32::from(settings.forwarding)),
        (CONF_PROXY_ARP, u32::from(settings.proxy_arp)),
        (CONF_RP_FILTER, u32::from(settings.rp_filter)),
    ];
    set_conf(index, &conf)
}

pub(super) fn forward(index: u32) -> Request {
    set_conf(index, &[(CONF_FORWARDING, 1)])
}

fn set_conf(index: u32, entries: &[(u16, u32)]) -> Request {
    // By hand, since the crate's own form leaves out every zero.
    let mut conf = Vec::with_capacity(8 * entries.len());
    for (entry, value) in entries {
        conf.extend(8u16.to_ne_bytes());
        conf.extend(entry.to_ne_bytes());
        conf.extend(value.to_ne_bytes());
    }
    let conf = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, conf));
    set_family(index, AfSpecUnspec::Inet(vec![conf]))
}

pub(super) fn generate_no_address(index: u32) -> Request {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    set_family(index, AfSpecUnspec::Inet6(vec![mode]))
}

fn set_family(index: u32, family: AfSpecUnspec) -> Request {
    let mut message = link(index);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![family]));
    Request::new(Message::SetLink(message), 0)
}

fn address(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = address.prefix_len;
    let ip = IpAddr::V4(address.address);
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

pub(super) fn add_address(index: u32, it: &Address) -> Request {
    Request::new(
        Message::NewAddress(address(index, it)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

pub(super) fn remove_address(index: u32, it: &Address) -> Request {
    Request::new(Message::DelAddress(address(index, it)), 0)
}

pub(super) fn neighbour(index: u32, destination: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination.into()));
    message
}

pub(super) fn put_neighbour(index: u32, address: Ipv4Addr, mac: MacAddr) -> Request {
    let mut message = neighbour(index, address);
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::new(Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn remove_neighbour(index: u32, address: Ipv4Addr) -> Request {
    Request::new(Message::DelNeighbour(neighbour(index, address)), 0)
}

fn fdb(index: u32, mac: MacAddr, remote: Option<Ipv4Addr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
        .attributes
        .extend(remote.map(|remote| NeighbourAttribute::Destination(remote.into())));
    message
}

pub(super) fn put_fdb(index: u32, mac: MacAddr, remote: Ipv4Addr) -> Request {
    Request::new(
        Message::NewNeighbour(fdb(index, mac, Some(remote))),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

pub(super) fn remove_fdb(index: u32, entry: &FdbEntry) -> Request {
    // Without a destination the kernel removes all entries of the MAC, which is
    // the only way to name one that overrides port or VNI.
    let remote = entry.remote.filter(|_| entry.plain);
    Request::new(Message::DelNeighbour(fdb(index, entry.mac, remote)), 0)
}

fn route(index: Option<u32>, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = AddressFamily::Inet;
    header.destination_prefix_length = route.destination.prefix_len();
    header.tos = route.tos;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    header.scope = match route.scope {
        Scope::Universe => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
        Scope::Other(scope) => RouteScope::from(scope),
    };
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(kind) => RouteType::from(kind),
    };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    if let IpAddr::V4(destination) = route.destination.first()
        && route.destination.prefix_len() > 0
    {
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    }
    let inet = RouteAddress::Inet;
    let attributes = [
        route.via.map(|via| RouteAttribute::Gateway(inet(via))),
        route
            .source
            .map(|source| RouteAttribute::PrefSource(inet(source))),
        index.map(RouteAttribute::Oif),
        (route.metric != 0).then_some(RouteAttribute::Priority(route.metric)),
        route
            .mtu
            .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
    ];
    message.attributes.extend(attributes.into_iter().flatten());
    message
}

/// Neither `NLM_F_EXCL` nor `NLM_F_REPLACE`: ours comes before another's route to
/// the same destination, and that one stays as it is.
pub(super) fn add_route(index: Option<u32>, it: &Route) -> Request {
    Request::new(Message::NewRoute(route(index, it)), NLM_F_CREATE)
}

pub(super) fn remove_route(index: Option<u32>, it: &Route) -> Request {
    let mut message = route(index, it);
    message.header.flags = RouteFlags::empty();
    if it.odd {
        // Its next hops may be many, or an object of its own: any will do.
        message.attributes.retain(|attribute| {
            !matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Oif(_)
            )
        });
    }
    Request::new(Message::DelRoute(message), 0)
}
