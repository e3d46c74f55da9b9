//! What this network namespace offers as an underlay, read by the
//! steward at the start and whenever something about it may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NetlinkError, NetlinkSocket, Request, decode};
use crate::underlay::{DefaultRoute, Survey, SurveyedAddress, SurveyedLink};

/// `IFA_F_SECONDARY` (linux/if_addr.h): an address that follows another's prefix.
const SECONDARY: u32 = 0x01;

/// Reads devices, addresses and default routes.
///
/// # Errors
/// What the socket says.
pub fn survey(socket: &mut NetlinkSocket) -> Result<Survey, NetlinkError> {
    let mut addresses: BTreeMap<u32, Vec<SurveyedAddress>> = BTreeMap::new();
    let mut ask = AddressMessage::default();
    ask.header.family = AddressFamily::Inet;
    for found in socket.dump(&RouteNetlinkMessage::GetAddress(ask))? {
        if let RouteNetlinkMessage::NewAddress(message) = found
            && let Some(address) = usable_address(&message)
        {
            addresses
                .entry(message.header.index)
                .or_default()
                .push(address);
        }
    }
    let links = socket.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut ask = RouteMessage::default();
    ask.header.address_family = AddressFamily::Inet;
    let routes = socket.dump(&RouteNetlinkMessage::GetRoute(ask))?;
    Ok(Survey {
        links: links
            .iter()
            .filter_map(|found| match found {
                RouteNetlinkMessage::NewLink(message) => link(message, &mut addresses),
                _ => None,
            })
            .collect(),
        default_routes: routes
            .iter()
            .flat_map(|found| match found {
                RouteNetlinkMessage::NewRoute(message) => default_routes(message),
                _ => Vec::new(),
            })
            .collect(),
    })
}

/// Which of `addresses` the kernel would send to over the link with this index without a
/// next hop. It is the kernel's own look-up, so that rules and other tables count.
///
/// # Errors
/// What the socket suffers; that there is no route is no error.
pub fn on_link(
    socket: &mut NetlinkSocket,
    index: u32,
    addresses: impl IntoIterator<Item = Ipv4Addr>,
) -> Result<BTreeSet<Ipv4Addr>, NetlinkError> {
    let mut found = BTreeSet::new();
    for address in addresses {
        let mut ask = RouteMessage::default();
        ask.header.address_family = AddressFamily::Inet;
        ask.header.destination_prefix_length = 32;
        ask.attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        let answers = match socket.request(Request::new(RouteNetlinkMessage::GetRoute(ask), 0)) {
            Ok(answers) => answers,
            Err(error) if error.refusal().is_some() => continue,
            Err(error) => return Err(error),
        };
        if answers.iter().any(|answer| leads_over(answer, index)) {
            found.insert(address);
        }
    }
    Ok(found)
}

/// Whether a looked-up route leads over that link and to nobody else on it.
fn leads_over(answer: &RouteNetlinkMessage, index: u32) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return false;
    };
    let mut over = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => over = *oif == index,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return false,
            _ => {}
        }
    }
    over && route.header.kind == RouteType::Unicast
}

/// The source address that the kernel would use towards `target`; sends nothing.
///
/// # Errors
/// When there is no route.
pub fn source_towards(target: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // Connecting a UDP socket only looks the route up.
    socket.connect(SocketAddr::new(target, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn usable_address(message: &AddressMessage) -> Option<SurveyedAddress> {
    let mut flags = u32::from(message.header.flags.bits());
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = all.bits(),
            _ => {}
        }
    }
    if flags & SECONDARY != 0 || message.header.scope != AddressScope::Universe {
        return None;
    }
    Some(SurveyedAddress {
        address: local.or(address)?,
        prefix_len: message.header.prefix_len,
    })
}

fn link(
    message: &LinkMessage,
    addresses: &mut BTreeMap<u32, Vec<SurveyedAddress>>,
) -> Option<SurveyedLink> {
    let (mut name, mut mac) = (None, None);
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = Some(n.clone()),
            LinkAttribute::Mtu(m) => mtu = *m,
            LinkAttribute::Address(bytes) => mac = decode::mac(bytes),
            _ => {}
        }
    }
    let name = name?;
    let flags = message.header.flags;
    let silent = flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback);
    // Our own devices carry pod addresses, never the underlay.
    if name.starts_with(viaduct_model::attachment::LINK_PREFIX) {
        return None;
    }
    Some(SurveyedLink {
        name,
        index: message.header.index,
        mtu,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        mac: mac.filter(|_| !silent),
        addresses: addresses.remove(&message.header.index).unwrap_or_default(),
    })
}

fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    if message.header.destination_prefix_length != 0 {
        return Vec::new();
    }
    let mut table = u32::from(message.header.table);
    let (mut index, mut gateway, mut source, mut metric) = (None, None, None, 0);
    let mut several = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Oif(i) => index = Some(*i),
            RouteAttribute::Gateway(g) => gateway = v4(g),
            RouteAttribute::PrefSource(s) => source = v4(s),
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::MultiPath(hops) => {
                several = hops
                    .iter()
                    .map(|hop| {
                        let gateway = hop.attributes.iter().find_map(|a| match a {
                            RouteAttribute::Gateway(g) => v4(g),
                            _ => None,
                        });
                        (hop.interface_index, gateway)
                    })
                    .collect();
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return Vec::new();
    }
    several
        .into_iter()
        .chain(index.map(|i| (i, gateway)))
        .map(|(index, gateway)| DefaultRoute {
            index,
            gateway,
            source,
            metric,
        })
        .collect()
}

fn v4(address: &RouteAddress) -> Option<Ipv4Addr> {
    match address {
        RouteAddress::Inet(ip) => Some(*ip),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reading needs no privilege and changes nothing.
    #[test]
    fn the_loopback_is_surveyed() {
        let survey = survey(&mut NetlinkSocket::open().unwrap()).unwrap();
        let loopback = survey.links.iter().find(|l| l.name == "lo").unwrap();
        assert!(loopback.loopback);
    }

    #[test]
    fn nobody_is_on_link_on_the_loopback() {
        let mut socket = NetlinkSocket::open().unwrap();
        // The route to oneself is of type local.
        let found = on_link(&mut socket, 1, ["127.0.0.1".parse().unwrap()]).unwrap();
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn the_source_towards_the_loopback_is_the_loopback() {
        assert_eq!(
            source_towards("127.0.0.1".parse().unwrap())
                .unwrap()
                .to_string(),
            "127.0.0.1"
        );
    }
}
