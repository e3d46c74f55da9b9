//! A pod's veth pair as netlink messages: made, looked at, cut off, removed.
//!
//! Called by the CNI server's wiring, which says what should be there. The pod's
//! end is only ever changed through a socket that was opened in the pod's network
//! namespace, never by that namespace's id (the kernel would move host devices).

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use viaduct_cni::fault;
use viaduct_model::{Cidr, MacAddr};

use super::{NetlinkError, NetlinkSocket, Request, SETTINGS, apply, encode};
use crate::dataplane::kernel::KernelError;
use crate::dataplane::objects::{Address, ROUTE_PROTOCOL, Route};
use crate::dataplane::plan::Op;

/// The group that links wait in for their deletion ("viad"); the kernel deletes a
/// whole group at the price of one link.
const DOOMED: u32 = 0x7669_6164;

/// The loopback link's index, in every network namespace.
const LOOPBACK: u32 = 1;

/// A pod's veth pair, and what belongs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The host end's name.
    pub link: String,
    /// The host end's MAC.
    pub host_mac: MacAddr,
    /// The pod end's name.
    pub ifname: String,
    /// The pod end's MAC.
    pub pod_mac: MacAddr,
    /// The MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The next hop that the pod sends everything to.
    pub gateway: Ipv4Addr,
}

/// A link as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: Option<MacAddr>,
    /// Whether it carries packets: it is up, its other end is too, and the kernel
    /// has drawn its conclusions from that.
    pub carries: bool,
}

/// Makes the pair; the pod's end is born in `namespace`. Returns the host end's
/// index.
///
/// # Errors
/// The kernel's; `EEXIST` when either end's name is taken.
pub fn create(
    host: &mut NetlinkSocket,
    pair: &Pair,
    namespace: BorrowedFd<'_>,
) -> Result<u32, NetlinkError> {
    // The peer's message must not carry `up`: the kernel refuses that (ENOTCONN).
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(pair.ifname.clone()),
        LinkAttribute::Address(pair.pod_mac.0.to_vec()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(pair.link.clone()),
        LinkAttribute::Address(pair.host_mac.0.to_vec()),
        LinkAttribute::Mtu(pair.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
    let answers = host.request(Request::new(Message::NewLink(link), flags))?;
    if let Some(found) = answers.into_iter().find_map(found) {
        return Ok(found.index);
    }
    // Kernels before 6.2 do not echo.
    match find(host, &pair.link)? {
        Some(found) => Ok(found.index),
        None => Err(NetlinkError::Malformed(format!(
            "link {} is not there after it was created",
            pair.link
        ))),
    }
}

/// Looks a link up by its name.
///
/// # Errors
/// What the socket suffered; that there is none is no error.
pub fn find(socket: &mut NetlinkSocket, name: &str) -> Result<Option<Found>, NetlinkError> {
    let request = Request::new(Message::GetLink(named(name)), 0);
    match socket.request(request) {
        Ok(answers) => Ok(answers.into_iter().find_map(found)),
        Err(error) if error.already_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists the names of all links that begin with `prefix`.
///
/// # Errors
/// What the socket suffered.
pub fn names(socket: &mut NetlinkSocket, prefix: &str) -> Result<Vec<String>, NetlinkError> {
    let all = socket.dump(&Message::GetLink(LinkMessage::default()))?;
    Ok(all
        .into_iter()
        .filter_map(found)
        .map(|link| link.name)
        .filter(|name| name.starts_with(prefix))
        .collect())
}

/// The addresses that our routes lead through `link`.
///
/// # Errors
/// What the socket suffered.
pub fn addresses_behind(
    host: &mut NetlinkSocket,
    link: &str,
) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let Some(found) = find(host, link)? else {
        return Ok(Vec::new());
    };
    let mut ours = RouteMessage::default();
    ours.header.address_family = AddressFamily::Inet;
    let through = RouteAttribute::Oif(found.index);
    let addresses = host
        .dump(&Message::GetRoute(ours))?
        .into_iter()
        .filter_map(|message| match message {
            Message::NewRoute(route) => Some(route),
            _ => None,
        })
        .filter(|route| route.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL))
        .filter(|route| route.header.destination_prefix_length == 32)
        .filter(|route| route.attributes.contains(&through))
        .filter_map(|route| {
            route.attributes.into_iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(address),
                _ => None,
            })
        });
    Ok(addresses.collect())
}

/// Carries out what the reconciler would do about a host end that was just made.
/// Returns the first refusal, but for settings that only a writable /proc/sys
/// takes: the reconciler goes on about those.
///
/// # Errors
/// The kernel's refusal.
pub fn finish_host_end(
    host: &mut NetlinkSocket,
    link: &str,
    index: u32,
    plan: &[Op],
) -> Result<(), KernelError> {
    let mut indices = apply::Indices::from([(link.into(), index)]);
    let answers = apply::apply(host, &mut indices, Path::new(SETTINGS), plan);
    plan.iter()
        .zip(answers)
        .filter(|(op, _)| !matches!(op, Op::RefuseRouterAdvertisements { .. }))
        .try_for_each(|(_, answer)| answer)
}

/// What makes the pod's end work, in order, and whether "it is there already" is
/// fine with that request: another network of the same pod may have its default
/// route already (CNI spec, section 5).
pub fn pod_requests(pair: &Pair, index: u32) -> Vec<(Request, bool)> {
    let address = Address {
        link: pair.ifname.as_str().into(),
        address: pair.address,
        prefix_len: 32,
    };
    let mut to_gateway = pod_route(pair.gateway, 32, RouteScope::Link);
    to_gateway.attributes.push(RouteAttribute::Oif(index));
    let mut default = pod_route(Ipv4Addr::UNSPECIFIED, 0, RouteScope::Universe);
    default.header.flags = RouteFlags::Onlink;
    default.attributes.extend([
        RouteAttribute::Oif(index),
        RouteAttribute::Gateway(RouteAddress::Inet(pair.gateway)),
    ]);
    let create = NLM_F_CREATE | NLM_F_EXCL;
    vec![
        (encode::set_link(LOOPBACK, None, None), false),
        (encode::set_link(index, None, None), false),
        (encode::add_address(index, &address), true),
        (
            encode::put_neighbour(index, pair.gateway, pair.host_mac),
            false,
        ),
        (Request::new(Message::NewRoute(to_gateway), create), true),
        (Request::new(Message::NewRoute(default), create), true),
    ]
}

/// Cuts a pod off: nobody reaches its addresses any more, and it sends from them no
/// more (the strict source check finds no way back). Cheap, unlike the deletion of
/// the link, for which it is marked.
///
/// # Errors
/// The kernel's first refusal; what is gone already is no error.
pub fn cut_off(
    host: &mut NetlinkSocket,
    link: &str,
    addresses: &[IpAddr],
) -> Result<(), NetlinkError> {
    let mut requests = Vec::new();
    for address in addresses {
        // By address alone: the link, and its index with it, may be gone.
        if address.is_ipv4() {
            let route = Route::through(Cidr::host(*address), link.into());
            requests.push(encode::remove_route(None, &route));
        }
    }
    let mut doomed = named(link);
    doomed.attributes.push(LinkAttribute::Group(DOOMED));
    requests.push(Request::new(Message::SetLink(doomed), 0));
    fault::point("cut_off.begun");
    // At once, but where a test wants to be in between.
    let at_once = if fault::HERE { 1 } else { requests.len() };
    let mut results = Vec::with_capacity(requests.len());
    for some in requests.chunks(at_once) {
        results.extend(host.execute(some));
        if results.len() < requests.len() {
            fault::point("cut_off.half");
        }
    }
    fault::point("cut_off.done");
    first_refusal(results)
}

/// Deletes every link that was marked by [`cut_off`], at the price of one.
///
/// # Errors
/// The kernel's refusal; that there is none is no error.
pub fn delete_doomed(host: &mut NetlinkSocket) -> Result<(), NetlinkError> {
    let mut group = LinkMessage::default();
    group.attributes.push(LinkAttribute::Group(DOOMED));
    first_refusal(host.execute(&[Request::new(Message::DelLink(group), 0)]))
}

/// Deletes links by their indices at the price of one, and says of each how it went.
pub(super) fn delete_together(
    host: &mut NetlinkSocket,
    indices: &[u32],
) -> Vec<Result<(), NetlinkError>> {
    let marks: Vec<Request> = indices
        .iter()
        .map(|index| {
            let mut doomed = LinkMessage::default();
            doomed.header.index = *index;
            doomed.attributes.push(LinkAttribute::Group(DOOMED));
            Request::new(Message::SetLink(doomed), 0)
        })
        .collect();
    let marked = host.execute(&marks);
    let deleted = delete_doomed(host);
    marked
        .into_iter()
        .map(|mark| mark.and_then(|()| deleted.clone()))
        .collect()
}

/// Deletes one link and waits until it is gone.
///
/// # Errors
/// The kernel's refusal; that there is none is no error.
pub fn delete(host: &mut NetlinkSocket, link: &str) -> Result<(), NetlinkError> {
    first_refusal(host.execute(&[Request::new(Message::DelLink(named(link)), 0)]))
}

fn first_refusal(results: Vec<Result<(), NetlinkError>>) -> Result<(), NetlinkError> {
    results
        .into_iter()
        .find(|r| r.as_ref().is_err_and(|e| !e.already_gone()))
        .unwrap_or(Ok(()))
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn pod_route(destination: Ipv4Addr, prefix_len: u8, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.destination_prefix_length = prefix_len;
    message.header.scope = scope;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    if prefix_len > 0 {
        let address = RouteAddress::Inet(destination);
        message
            .attributes
            .push(RouteAttribute::Destination(address));
    }
    message
}

fn found(message: Message) -> Option<Found> {
    let Message::NewLink(link) = message else {
        return None;
    };
    let (mut name, mut mac, mut carries) = (None, None, false);
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = Some(n),
            LinkAttribute::Address(bytes) => mac = bytes.try_into().ok().map(MacAddr),
            // The kernel says so only after it has activated the link's queues; the
            // flags say it before.
            LinkAttribute::OperState(state) => carries = state == State::Up,
            _ => {}
        }
    }
    Some(Found {
        index: link.header.index,
        name: name?,
        mac,
        carries,
    })
}
