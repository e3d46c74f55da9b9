//! The dump: all that is ours in the kernel, as plain data.
//!
//! Filters are the kernel's own wherever it has them, so that the cost grows with
//! what is ours and not with what others have.

use std::collections::{BTreeMap, HashMap};

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::{NetlinkError, NetlinkSocket, decode};
use crate::dataplane::objects::{
    Actual, Address, FdbEntry, LinkKind, LinkName, ROUTE_PROTOCOL, is_ours,
};
use crate::dataplane::rivals::ForeignRoute;

/// Names of all links by index.
pub(super) type Names = BTreeMap<u32, LinkName>;

/// Lists what is ours, and the names of all links.
///
/// # Errors
/// When one of the lists cannot be had: half a picture must not be acted on.
pub(super) fn dump(socket: &mut NetlinkSocket) -> Result<(Actual, Names), NetlinkError> {
    let mut actual = Actual::default();
    let names = links(socket, &mut actual)?;
    addresses(socket, &names, &mut actual)?;
    routes(socket, &names, &mut actual)?;
    neighbours(socket, &names, &mut actual)?;
    fdb(socket, &mut actual)?;
    Ok((actual, names))
}

fn links(socket: &mut NetlinkSocket, actual: &mut Actual) -> Result<Names, NetlinkError> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut names = Names::new();
    for message in socket.dump(&Message::GetLink(request))? {
        let Message::NewLink(message) = message else {
            continue;
        };
        let Some(name) = decode::link_name(&message) else {
            continue;
        };
        if is_ours(name)
            && let Some((name, link)) = decode::link(&message)
        {
            names.insert(link.index, name.clone());
            actual.links.insert(name, link);
        } else {
            let name: LinkName = name.into();
            names.insert(message.header.index, name.clone());
            actual
                .foreign
                .extend(decode::foreign_link(&message).map(|link| (name, link)));
        }
    }
    Ok(names)
}

/// The name of one of our links.
fn our_link(names: &Names, index: u32) -> Option<LinkName> {
    names.get(&index).filter(|name| is_ours(name)).cloned()
}

fn addresses(
    socket: &mut NetlinkSocket,
    names: &Names,
    actual: &mut Actual,
) -> Result<(), NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    for message in socket.dump(&Message::GetAddress(request))? {
        if let Message::NewAddress(message) = message
            && let Some((index, address, prefix_len)) = decode::address(&message)
            && let Some(link) = our_link(names, index)
        {
            actual.addresses.insert(Address {
                link,
                address,
                prefix_len,
            });
        }
    }
    Ok(())
}

fn routes(
    socket: &mut NetlinkSocket,
    names: &Names,
    actual: &mut Actual,
) -> Result<(), NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    let found = match socket.dump(&Message::GetRoute(request)) {
        // A namespace without any route has no main table either.
        Err(error) if error.already_gone() => return Ok(()),
        found => found?,
    };
    for message in found {
        if let Message::NewRoute(message) = message
            && let Some(mut found) = decode::route(&message)
            && found.ours
        {
            if let Some(index) = found.link {
                // A link that came after the list of links, with a pod that is being
                // wired: the next look sees both.
                let Some(name) = names.get(&index) else {
                    continue;
                };
                found.route.link = Some(name.clone());
            }
            actual.routes.insert(found.route);
        }
    }
    Ok(())
}

fn neighbours(
    socket: &mut NetlinkSocket,
    names: &Names,
    actual: &mut Actual,
) -> Result<(), NetlinkError> {
    // The kernel can filter by one link only, and each such list walks the whole
    // table; one list of it all is cheaper than one for each pod.
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet;
    for message in socket.dump(&Message::GetNeighbour(request))? {
        if let Message::NewNeighbour(message) = message
            && let Some((index, address, Some(mac))) = decode::neighbour(&message)
            && let Some(link) = our_link(names, index)
        {
            actual.neighbours.insert((link, address), mac);
        }
    }
    Ok(())
}

fn fdb(socket: &mut NetlinkSocket, actual: &mut Actual) -> Result<(), NetlinkError> {
    for (name, link) in &actual.links {
        if !matches!(link.kind, LinkKind::Vxlan(_)) {
            continue;
        }
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.header.ifindex = link.index;
        for message in socket.dump(&Message::GetNeighbour(request))? {
            if let Message::NewNeighbour(message) = message
                && let Some(found) = decode::fdb(&message)
                && found.link == link.index
            {
                actual.fdb.insert(FdbEntry {
                    link: name.clone(),
                    mac: found.mac,
                    remote: found.remote,
                    plain: found.plain,
                });
            }
        }
    }
    Ok(())
}

/// Lists the IPv4 routes of the main table that are not ours.
///
/// # Errors
/// When the list cannot be had.
pub(super) fn foreign_routes(
    socket: &mut NetlinkSocket,
    names: &HashMap<u32, LinkName>,
) -> Result<Vec<ForeignRoute>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let found = match socket.dump(&Message::GetRoute(request)) {
        Err(error) if error.already_gone() => return Ok(Vec::new()),
        found => found?,
    };
    let mut foreign = Vec::new();
    // Routes to one destination come one after the other, the one in use first.
    let mut ours = None;
    for message in found {
        let Message::NewRoute(message) = message else {
            continue;
        };
        let Some(mut found) = decode::route(&message) else {
            continue;
        };
        if found.ours {
            ours = Some(found.route.destination);
            continue;
        }
        found.route.link = found.link.map(|index| {
            let name = names.get(&index).cloned();
            name.unwrap_or_else(|| index.to_string().into())
        });
        foreign.push(ForeignRoute {
            first: ours != Some(found.route.destination),
            protocol: message.header.protocol.into(),
            route: found.route,
        });
    }
    Ok(foreign)
}
