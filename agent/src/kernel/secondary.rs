//! The way out of a pod's second interface: another one has the default route, and
//! what leaves by that with this one's source address is dropped there, as it must be.
//! So packets from this address have a table of their own in the pod's namespace.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use viaduct_cni::fault;

use super::veth::Pair;
use super::{NetlinkError, NetlinkSocket, Request, closeup};
use crate::dataplane::objects::ROUTE_PROTOCOL;

/// Tables are numbered from here by the index of their interface.
const FIRST_TABLE: u32 = 87_000;

/// Before the main table's rule (32766), behind the local one's (0).
const PRIORITY: u32 = 8_700;

fn table(index: u32) -> u32 {
    FIRST_TABLE.saturating_add(index)
}

/// Gives the pod's interface its own way out, in place of what an earlier one of that
/// address or index had, or one that is not there any more.
///
/// # Errors
/// The kernel's refusal.
pub fn provide(pod: &mut NetlinkSocket, pair: &Pair, index: u32) -> Result<(), NetlinkError> {
    let tables = tables(pod)?;
    for rule in rules(pod)? {
        let led = lookup(&rule);
        let theirs =
            source(&rule) != Some(pair.address) && led != table(index) && tables.contains(&led);
        if ours(&rule) && !theirs {
            let gone = pod.execute_one(Request::new(Message::DelRule(rule), 0));
            gone.or_else(|e| if e.already_gone() { Ok(()) } else { Err(e) })?;
        }
    }
    let mut default = RouteMessage::default();
    default.header.address_family = AddressFamily::Inet;
    default.header.table = RouteHeader::RT_TABLE_UNSPEC;
    default.header.scope = RouteScope::Universe;
    default.header.protocol = RouteProtocol::Boot;
    default.header.kind = RouteType::Unicast;
    default.header.flags = RouteFlags::Onlink;
    default.attributes = vec![
        RouteAttribute::Table(table(index)),
        RouteAttribute::Oif(index),
        RouteAttribute::Gateway(RouteAddress::Inet(pair.gateway)),
    ];
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.src_len = 32;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(IpAddr::V4(pair.address)),
        RuleAttribute::Table(table(index)),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    fault::point("secondary.begun");
    let route = Request::new(Message::NewRoute(default), NLM_F_CREATE | NLM_F_REPLACE);
    pod.execute_one(route)?;
    fault::point("secondary.routed");
    let rule = Request::new(Message::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL);
    pod.execute_one(rule)?;
    fault::point("secondary.ruled");
    Ok(())
}

/// Whether the pod's interface has its own way out.
///
/// # Errors
/// What the socket suffered.
pub fn stands(pod: &mut NetlinkSocket, pair: &Pair, index: u32) -> Result<bool, NetlinkError> {
    let led_there = rules(pod)?
        .iter()
        .any(|rule| source(rule) == Some(pair.address) && lookup(rule) == table(index));
    let name = pair.ifname.as_str().into();
    let out = closeup::routes(pod, index, &name, table(index))?
        .iter()
        .any(|(route, _)| {
            route.destination.prefix_len() == 0 && route.via == Some(pair.gateway) && route.onlink
        });
    Ok(led_there && out)
}

fn rules(pod: &mut NetlinkSocket) -> Result<Vec<RuleMessage>, NetlinkError> {
    let mut ask = RuleMessage::default();
    ask.header.family = AddressFamily::Inet;
    let found = pod.dump(&Message::GetRule(ask))?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            Message::NewRule(rule) => Some(rule),
            _ => None,
        })
        .collect())
}

/// The tables of the interfaces that are there.
fn tables(pod: &mut NetlinkSocket) -> Result<BTreeSet<u32>, NetlinkError> {
    let found = pod.dump(&Message::GetLink(LinkMessage::default()))?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            Message::NewLink(link) => Some(table(link.header.index)),
            _ => None,
        })
        .collect())
}

fn ours(rule: &RuleMessage) -> bool {
    let mark = RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    rule.attributes.contains(&mark)
}

fn lookup(rule: &RuleMessage) -> u32 {
    let given = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    given.unwrap_or_else(|| u32::from(rule.header.table))
}

fn source(rule: &RuleMessage) -> Option<Ipv4Addr> {
    rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Source(IpAddr::V4(address)) if rule.header.src_len == 32 => Some(*address),
        _ => None,
    })
}
