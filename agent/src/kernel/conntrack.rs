//! Connections that the kernel tracks, by address: found and forgotten, so that the
//! next pod with an address is not taken for the last.
//!
//! Called by the CNI server behind a DEL's answer. It never asks
//! the kernel to delete by a filter: kernels before 5.8 do not know filters, ignore
//! them, and would forget every connection of the host. What is to go is listed, and
//! deleted one by one.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NlasIterator};

use super::error::NetlinkError;
use super::netfilter::Netfilter;

/// `NFNL_SUBSYS_CTNETLINK << 8` and the messages of `linux/netfilter/nfnetlink_conntrack.h`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const GET_STATS: u16 = 1 << 8 | 5;

/// `struct nfgenmsg` for IPv4: family, version, resource.
const GENERIC: [u8; 4] = [2, 0, 0, 0];

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
/// Of the answer to [`GET_STATS`].
const ENTRIES: u16 = 1;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
/// The kind of a netlink attribute without its flags.
const KIND: u16 = 0x3fff;

/// How many connections are listed in the time of a walk through a table that holds
/// none (262,144 buckets, the kernel's default on most machines: 9 ms).
const LISTED_PER_WALK: usize = 10_000;

/// The kernel's connections, IPv4.
#[derive(Debug)]
pub struct Conntrack(Netfilter);

/// As much of a connection as names it: its attributes as the kernel gave them.
type Name = Vec<u8>;

impl Conntrack {
    /// Opens a socket in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Netfilter::open().map(Self)
    }

    /// Forgets every connection from or to one of these addresses, translated or not,
    /// and says how many there were.
    ///
    /// # Errors
    /// The kernel's refusal; it may know no connections at all.
    pub fn forget(&mut self, addresses: &BTreeSet<Ipv4Addr>) -> Result<usize, NetlinkError> {
        let mut names = BTreeSet::new();
        match look(addresses.len(), self.count()?) {
            Look::None => {}
            Look::All => self.list(&[], addresses, &mut names)?,
            Look::Filtered => {
                for address in addresses {
                    for end in ENDS {
                        self.list(&filter(end, *address), addresses, &mut names)?;
                    }
                }
            }
        }
        let mut forgotten = 0;
        for name in names {
            match self.delete(&name) {
                Ok(()) => forgotten += 1,
                // It ended by itself.
                Err(error) if error.already_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }

    /// How many connections the kernel tracks in this namespace.
    fn count(&mut self) -> Result<usize, NetlinkError> {
        self.0.ask(GET_STATS, NLM_F_ACK, GENERIC, &[])?;
        let mut count = None;
        self.0
            .answers(|payload| count = count.or_else(|| entries(payload)))?;
        // A kernel that does not tell is taken for a busy one.
        Ok(count.unwrap_or(usize::MAX))
    }

    /// Names the connections of `addresses` among those that the kernel lists with
    /// these attributes, which it may not understand.
    fn list(
        &mut self,
        attributes: &[u8],
        addresses: &BTreeSet<Ipv4Addr>,
        names: &mut BTreeSet<Name>,
    ) -> Result<(), NetlinkError> {
        self.0.ask(GET, NLM_F_DUMP, GENERIC, attributes)?;
        self.0.answers(|payload| {
            if concerns(payload, addresses) {
                names.insert(name(payload));
            }
        })
    }

    fn delete(&mut self, name: &Name) -> Result<(), NetlinkError> {
        self.0.ask(DELETE, NLM_F_ACK, GENERIC, name)?;
        self.0.answers(|_| {})
    }
}

/// How connections are looked for.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// There are none.
    None,
    /// By one list of everything.
    All,
    /// By a list for each end of each address, for each of which the kernel walks its
    /// whole table, but tells little.
    Filtered,
}

/// The cheapest way to look for connections of so many addresses among so many.
fn look(addresses: usize, connections: usize) -> Look {
    let walks_spared = (addresses * ENDS.len()).saturating_sub(1);
    match connections {
        0 => Look::None,
        _ if connections > walks_spared.saturating_mul(LISTED_PER_WALK) => Look::Filtered,
        _ => Look::All,
    }
}

fn entries(payload: &[u8]) -> Option<usize> {
    attributes(payload.get(GENERIC.len()..)?)
        .find(|(kind, _)| *kind == ENTRIES)
        .and_then(|(_, value)| value.try_into().ok())
        .and_then(|bytes| usize::try_from(u32::from_be_bytes(bytes)).ok())
}

/// Where in a connection an address may stand. Where it is answered to is where it
/// called from, unless that was translated, and then the caller's own stands first.
#[derive(Clone, Copy)]
enum End {
    Caller,
    Called,
    Answers,
}

const ENDS: [End; 3] = [End::Caller, End::Called, End::Answers];

/// What makes the kernel list only connections with this address at this end.
fn filter(end: End, address: Ipv4Addr) -> Vec<u8> {
    let (tuple, place, flags, bit) = match end {
        End::Caller => (TUPLE_ORIG, IP_V4_SRC, FILTER_ORIG_FLAGS, 1u32),
        End::Called => (TUPLE_ORIG, IP_V4_DST, FILTER_ORIG_FLAGS, 2),
        End::Answers => (TUPLE_REPLY, IP_V4_SRC, FILTER_REPLY_FLAGS, 1),
    };
    let ip = attribute(
        TUPLE_IP | NLA_F_NESTED,
        &attribute(place, &address.octets()),
    );
    let mut attributes = attribute(tuple | NLA_F_NESTED, &ip);
    let mut both = Vec::new();
    for kind in [FILTER_ORIG_FLAGS, FILTER_REPLY_FLAGS] {
        let bits = if kind == flags { bit } else { 0 };
        both.extend(attribute(kind, &bits.to_ne_bytes()));
    }
    attributes.extend(attribute(FILTER | NLA_F_NESTED, &both));
    attributes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// The attributes in a connection's message; one that is cut short ends them.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .filter_map(move |nla| {
            let start = nla.value().as_ptr() as usize - bytes.as_ptr() as usize;
            let value = bytes.get(start..start + nla.value().len())?;
            Some((nla.kind() & KIND, value))
        })
}

fn concerns(payload: &[u8], addresses: &BTreeSet<Ipv4Addr>) -> bool {
    attributes(payload.get(GENERIC.len()..).unwrap_or_default())
        .filter(|(kind, _)| matches!(*kind, TUPLE_ORIG | TUPLE_REPLY))
        .flat_map(|(_, tuple)| attributes(tuple))
        .filter(|(kind, _)| *kind == TUPLE_IP)
        .flat_map(|(_, ip)| attributes(ip))
        .filter(|(kind, _)| matches!(*kind, IP_V4_SRC | IP_V4_DST))
        .filter_map(|(_, octets)| <[u8; 4]>::try_from(octets).ok())
        .any(|octets| addresses.contains(&Ipv4Addr::from(octets)))
}

/// What a deletion needs. The id is among it, so that no later connection between the
/// same ends is hit.
fn name(payload: &[u8]) -> Name {
    attributes(payload.get(GENERIC.len()..).unwrap_or_default())
        .filter(|(kind, _)| matches!(*kind, TUPLE_ORIG | ID | ZONE))
        .flat_map(|(kind, value)| {
            let nested = if kind == TUPLE_ORIG { NLA_F_NESTED } else { 0 };
            attribute(kind | nested, value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(kind: u16, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut ip = attribute(IP_V4_SRC, &source);
        ip.extend(attribute(IP_V4_DST, &destination));
        attribute(
            kind | NLA_F_NESTED,
            &attribute(TUPLE_IP | NLA_F_NESTED, &ip),
        )
    }

    #[test]
    fn a_connection_concerns_its_ends_and_is_named_by_tuple_id_and_zone() {
        let mut payload = GENERIC.to_vec();
        payload.extend(tuple(TUPLE_ORIG, [10, 0, 0, 1], [192, 0, 2, 1]));
        payload.extend(tuple(TUPLE_REPLY, [10, 0, 0, 2], [10, 0, 0, 1]));
        payload.extend(attribute(ID, &7u32.to_be_bytes()));
        payload.extend(attribute(7, &60u32.to_be_bytes()));
        let among = |address: [u8; 4]| concerns(&payload, &BTreeSet::from([address.into()]));
        for address in [[10, 0, 0, 1], [192, 0, 2, 1], [10, 0, 0, 2]] {
            assert!(among(address), "{address:?}");
        }
        assert!(!among([10, 0, 0, 3]));
        let mut expected = tuple(TUPLE_ORIG, [10, 0, 0, 1], [192, 0, 2, 1]);
        expected.extend(attribute(ID, &7u32.to_be_bytes()));
        assert_eq!(name(&payload), expected);
    }

    #[test]
    fn a_large_table_is_listed_only_for_many_addresses() {
        assert_eq!(look(1, 0), Look::None);
        assert_eq!(look(1, 20_000), Look::All);
        assert_eq!(look(1, 20_001), Look::Filtered);
        assert_eq!(look(4, 100_000), Look::All);
        assert_eq!(look(4, 200_000), Look::Filtered);
        assert_eq!(look(200, usize::MAX), Look::Filtered);
    }

    #[test]
    fn the_count_is_read_in_network_order_and_not_from_less() {
        let mut payload = vec![0, 0, 0, 0];
        payload.extend(attribute(ENTRIES, &258u32.to_be_bytes()));
        assert_eq!(entries(&payload), Some(258));
        assert_eq!(entries(&payload[..6]), None);
        assert_eq!(entries(&[]), None);
    }

    #[test]
    fn hostile_lengths_do_not_panic() {
        for cut in 0..40 {
            let mut payload = GENERIC.to_vec();
            payload.extend(tuple(TUPLE_ORIG, [10, 0, 0, 1], [192, 0, 2, 1]));
            payload.truncate(cut);
            concerns(&payload, &BTreeSet::new());
            name(&payload);
        }
        assert!(!concerns(&[2, 0, 0, 0, 0xff, 0xff, 1, 0], &BTreeSet::new()));
    }
}
