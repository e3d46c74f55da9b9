//! One link from near: itself and what stands on it, in whatever network namespace
//! the socket belongs to. Read by CHECK, of both ends of a pair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use viaduct_model::MacAddr;

use super::{NetlinkError, NetlinkSocket, Request, decode};
use crate::dataplane::objects::{ActualLink, Address, LinkName, Route};

/// A link and what stands on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closeup {
    /// Its name.
    pub name: LinkName,
    /// The link.
    pub link: ActualLink,
    /// The index of its other end, in that end's namespace.
    pub peer: Option<u32>,
    /// Whether it carries packets.
    pub carries: bool,
    /// Its IPv4 addresses.
    pub addresses: BTreeSet<Address>,
    /// The IPv4 routes through it in the table that was asked for, and whether each
    /// bears our protocol number.
    pub routes: Vec<(Route, bool)>,
    /// Its permanent IPv4 neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, MacAddr>,
}

/// Looks at a link and at its routes in the main table; `None` when there is none of
/// that name.
///
/// # Errors
/// What the socket suffered.
pub fn closeup(socket: &mut NetlinkSocket, name: &str) -> Result<Option<Closeup>, NetlinkError> {
    let mut ask = LinkMessage::default();
    ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let found = match socket.request(Request::new(Message::GetLink(ask), 0)) {
        Ok(answers) => answers.into_iter().find_map(|answer| match answer {
            Message::NewLink(message) => Some(message),
            _ => None,
        }),
        Err(error) if error.already_gone() => None,
        Err(error) => return Err(error),
    };
    let Some(message) = found else {
        return Ok(None);
    };
    let Some((name, link)) = decode::link(&message) else {
        return Err(NetlinkError::Malformed(format!("link {name} has no MTU")));
    };
    let (mut peer, mut carries) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::OperState(state) => carries = *state == State::Up,
            _ => {}
        }
    }
    let index = link.index;
    Ok(Some(Closeup {
        link,
        peer,
        carries,
        addresses: addresses(socket, index, &name)?,
        routes: routes(socket, index, &name, u32::from(RouteHeader::RT_TABLE_MAIN))?,
        neighbours: neighbours(socket, index)?,
        name,
    }))
}

fn addresses(
    socket: &mut NetlinkSocket,
    index: u32,
    name: &LinkName,
) -> Result<BTreeSet<Address>, NetlinkError> {
    let mut ask = AddressMessage::default();
    ask.header.family = AddressFamily::Inet;
    ask.header.index = index;
    let found = socket.dump(&Message::GetAddress(ask))?;
    let on_it = found.into_iter().filter_map(|message| match message {
        Message::NewAddress(message) => decode::address(&message),
        _ => None,
    });
    Ok(on_it
        .filter(|(on, ..)| *on == index)
        .map(|(_, address, prefix_len)| Address {
            link: name.clone(),
            address,
            prefix_len,
        })
        .collect())
}

/// Lists the IPv4 routes through a link in one table.
///
/// # Errors
/// What the socket suffered; a table that is not there is empty.
pub(super) fn routes(
    socket: &mut NetlinkSocket,
    index: u32,
    name: &LinkName,
    table: u32,
) -> Result<Vec<(Route, bool)>, NetlinkError> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = AddressFamily::Inet;
    ask.attributes
        .extend([RouteAttribute::Table(table), RouteAttribute::Oif(index)]);
    let found = match socket.dump(&Message::GetRoute(ask)) {
        Err(error) if error.already_gone() => return Ok(Vec::new()),
        found => found?,
    };
    let through_it = found.into_iter().filter_map(|message| match message {
        Message::NewRoute(message) => decode::route_in(&message, table),
        _ => None,
    });
    Ok(through_it
        .filter(|found| found.link == Some(index))
        .map(|mut found| {
            found.route.link = Some(name.clone());
            (found.route, found.ours)
        })
        .collect())
}

fn neighbours(
    socket: &mut NetlinkSocket,
    index: u32,
) -> Result<BTreeMap<Ipv4Addr, MacAddr>, NetlinkError> {
    let mut ask = NeighbourMessage::default();
    ask.header.family = AddressFamily::Inet;
    ask.attributes.push(NeighbourAttribute::IfIndex(index));
    let found = socket.dump(&Message::GetNeighbour(ask))?;
    let on_it = found.into_iter().filter_map(|message| match message {
        Message::NewNeighbour(message) => decode::neighbour(&message),
        _ => None,
    });
    Ok(on_it
        .filter(|(on, ..)| *on == index)
        .filter_map(|(_, address, mac)| Some((address, mac?)))
        .collect())
}
