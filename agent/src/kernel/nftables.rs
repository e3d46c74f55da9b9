//! nftables as far as it is spoken over netlink here: the notice that somebody changed
//! our table, and the number of changes so far. Everything else goes by the `nft` program.
//!
//! Message and attribute numbers are those of `linux/netfilter/nf_tables.h`.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NetlinkBuffer};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};
use tokio::io::unix::AsyncFd;

use super::error::NetlinkError;
use super::monitor::multicast;
use super::netfilter::Netfilter;
use super::socket::failed;
use crate::egress::ruleset::TableFamily;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper half of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_NEWGEN`, which ends what one transaction has to say.
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
/// `NFT_MSG_GETGEN`; its answer has the number as attribute 1, in network order.
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const GENERATION_ID: u16 = 1;
/// `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = SUBSYSTEM | 2;

/// `NFPROTO_INET` and `NFPROTO_NETDEV`.
fn number(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => 1,
        TableFamily::Netdev => 5,
    }
}

/// The table's name, which is attribute 1 of messages of every kind.
const TABLE_NAME: u16 = 1;

/// Family, version and resource before the attributes.
const HEADER: usize = 4;

/// What the kernel may queue for us, in bytes: what thousands of changed elements say.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What was multicast since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Transactions that changed the table that is watched.
    pub transactions: u64,
    /// Whether the last thing that was done to the table was to delete it.
    pub gone: bool,
    /// Whether the kernel had to drop messages, so that there may have been more.
    pub lost: bool,
}

/// Watches one table. The kernel tells what a transaction did before
/// the transaction's sender is told that it is done.
#[derive(Debug)]
pub struct TableMonitor {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    family: u8,
    table: &'static str,
    telling: Telling,
}

/// As much as is remembered of the transaction that is being told.
#[derive(Debug, Default)]
struct Telling {
    /// Whether it has touched the table.
    touched: bool,
    /// Whether what it did last was to delete it.
    gone: bool,
}

impl TableMonitor {
    /// Opens it in this thread's network namespace; must be called in a runtime.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn open(family: TableFamily, table: &'static str) -> Result<Self, NetlinkError> {
        Ok(Self {
            fd: multicast(SockProtocol::NetlinkNetFilter, &[GROUP], RECEIVE_BUFFER)?,
            buffer: vec![0; 64 << 10],
            family: number(family),
            table,
            telling: Telling::default(),
        })
    }

    /// Waits for notifications and takes all that are there. May be dropped at any
    /// time without losing any.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> Result<Seen, NetlinkError> {
        loop {
            // Readiness is kept when this future is dropped.
            let mut guard = self.fd.readable().await.map_err(|error| {
                failed(
                    "epoll_wait",
                    Errno::from_raw(error.raw_os_error().unwrap_or_default()),
                )
            })?;
            guard.clear_ready();
            drop(guard);
            let seen = self.drain()?;
            if seen != Seen::default() {
                return Ok(seen);
            }
        }
    }

    /// Takes what is there without waiting.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&mut self) -> Result<Seen, NetlinkError> {
        let mut seen = Seen::default();
        loop {
            let fd = self.fd.get_ref().as_raw_fd();
            match recv(
                fd,
                &mut self.buffer,
                MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => match self.buffer.get(..length) {
                    Some(datagram) => {
                        let telling = &mut self.telling;
                        match transactions(datagram, (self.family, self.table), telling) {
                            Some(0) => {}
                            Some(count) => {
                                seen.transactions += count;
                                seen.gone = telling.gone;
                            }
                            None => seen.lost = true,
                        }
                    }
                    None => seen.lost = true,
                },
                Err(Errno::EAGAIN) => return Ok(seen),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => seen.lost = true,
                Err(errno) => return Err(failed("recv", errno)),
            }
        }
    }
}

/// The number that each transaction of anybody in this network namespace raises.
///
/// # Errors
/// When the kernel gives no socket or no answer that can be read.
pub fn generation() -> Result<u32, NetlinkError> {
    let mut socket = Netfilter::open()?;
    socket.ask(GET_GENERATION, NLM_F_ACK, [0; HEADER], &[])?;
    let mut number = None;
    socket.answers(|payload| number = number.or_else(|| generation_in(payload)))?;
    number.ok_or_else(|| NetlinkError::Malformed("the generation of nftables".into()))
}

fn generation_in(payload: &[u8]) -> Option<u32> {
    let number = attribute(payload, GENERATION_ID)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

/// How many transactions that touched `table` end in this datagram; `None` when it
/// cannot be read.
fn transactions(mut rest: &[u8], table: (u8, &str), telling: &mut Telling) -> Option<u64> {
    let mut ended = 0;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        if message.message_type() == NEW_GENERATION {
            ended += u64::from(std::mem::take(&mut telling.touched));
        } else if is_about(message.payload(), table) {
            telling.touched = true;
            telling.gone = message.message_type() == DELETE_TABLE;
        }
        let advance = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(advance..).unwrap_or_default();
    }
    Some(ended)
}

fn is_about(payload: &[u8], (family, table): (u8, &str)) -> bool {
    payload.first() == Some(&family)
        && attribute(payload, TABLE_NAME)
            .is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(name) == table.as_bytes())
}

fn attribute(payload: &[u8], kind: u16) -> Option<&[u8]> {
    let attributes = payload.get(HEADER..)?;
    find(attributes, kind)
}

/// The value of the first attribute of this kind (netlink's type, length, value).
fn find(mut rest: &[u8], kind: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`: less the flags for nesting and byte order.
    const KIND: u16 = 0x3fff;
    loop {
        let header: [u8; 4] = rest.get(..4)?.try_into().ok()?;
        let [l0, l1, k0, k1] = header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([k0, k1]) & KIND == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INET: u8 = 1;

    fn terminated(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }

    fn push(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        into.extend(length.to_ne_bytes());
        into.extend(kind.to_ne_bytes());
        into.extend(value);
        into.resize(into.len().next_multiple_of(4), 0);
    }

    fn message(kind: u16, family: u8, table: Option<&str>) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        if let Some(table) = table {
            push(&mut body, TABLE_NAME, &terminated(table));
        }
        let mut bytes = u32::try_from(16 + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn transactions_of_the_table_are_counted_and_others_are_not() {
        let new_rule = SUBSYSTEM | 6;
        let end = message(NEW_GENERATION, 0, None);
        let (mut touched, mut both) = (Telling::default(), Vec::new());
        for (family, table) in [(INET, "viaduct"), (INET, "viaduct"), (INET, "other")] {
            both.extend(message(new_rule, family, Some(table)));
        }
        assert_eq!(
            transactions(&both, (INET, "viaduct"), &mut touched),
            Some(0)
        );
        assert_eq!(transactions(&end, (INET, "viaduct"), &mut touched), Some(1));
        assert_eq!(transactions(&end, (INET, "viaduct"), &mut touched), Some(0));
        let mut foreign = message(new_rule, INET, Some("other"));
        foreign.extend(message(new_rule, 2, Some("viaduct")));
        foreign.extend(end);
        assert_eq!(
            transactions(&foreign, (INET, "viaduct"), &mut touched),
            Some(0)
        );
        assert_eq!(
            transactions(&[1, 2, 3], (INET, "viaduct"), &mut touched),
            None
        );
    }

    #[test]
    fn a_table_is_gone_when_its_deletion_came_last() {
        let (new_table, table) = (SUBSYSTEM, (INET, "viaduct"));
        let mut telling = Telling::default();
        for (kind, name, gone) in [
            (DELETE_TABLE, "viaduct", true),
            (DELETE_TABLE, "other", true),
            (new_table, "viaduct", false),
            (DELETE_TABLE, "other", false),
        ] {
            let told = message(kind, INET, Some(name));
            assert_eq!(transactions(&told, table, &mut telling), Some(0));
            assert_eq!(telling.gone, gone, "{kind} {name}");
        }
    }

    #[test]
    fn the_generation_is_read_in_network_order_and_not_from_less() {
        let mut payload = vec![0; HEADER];
        push(&mut payload, GENERATION_ID, &258u32.to_be_bytes());
        assert_eq!(generation_in(&payload), Some(258));
        assert_eq!(generation_in(&payload[..6]), None);
    }
}
