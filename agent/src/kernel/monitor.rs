//! The monitor: what the kernel multicasts about changes, as hints.
//!
//! Filled before the first dump, so that nothing is missed between the two. When the
//! kernel had to drop notifications it says so, and that becomes [`Hint::Resync`].

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::error::NetlinkError;
use super::options::AddMembership;
use super::{decode, socket::failed};
use crate::dataplane::hints::Hint;
use crate::dataplane::host::Host;

/// `RTNLGRP_*` of `linux/rtnetlink.h`: links, neighbours, IPv4 addresses, IPv4
/// routes, IPv4 settings.
const GROUPS: [u32; 5] = [1, 3, 5, 7, 24];

/// What the kernel may queue for us, in bytes: some 6,000 notifications, as many as
/// 2,000 peers cause.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Batches that may wait for the reconciler; beyond, the kernel queues.
const QUEUE: usize = 16;

/// The longest batch.
const BATCH: usize = 1024;

const RTM_NEWNETCONF: u16 = 80;

/// The multicast socket.
#[derive(Debug)]
pub struct Monitor {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Opens it in this thread's network namespace; must be called in a runtime.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = multicast(SockProtocol::NetlinkRoute, &GROUPS, RECEIVE_BUFFER)?;
        Ok(Self {
            fd,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Passes hints on from a task of its own until nobody wants them any more.
    pub fn spawn(mut self) -> mpsc::Receiver<Vec<Hint>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                let hints = tokio::select! {
                    hints = self.next() => hints,
                    () = sender.closed() => return,
                };
                match hints {
                    Ok(hints) if hints.is_empty() => {}
                    Ok(hints) => {
                        if sender.send(hints).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // The audit still finds what hints no longer tell.
                        tracing::error!(%error, "the kernel's notifications have ended");
                        return;
                    }
                }
            }
        });
        receiver
    }

    /// Waits for notifications and takes all that are there. May be dropped at any
    /// time without losing any.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> Result<Vec<Hint>, NetlinkError> {
        let mut guard = self.fd.readable().await.map_err(|error| {
            failed(
                "epoll_wait",
                Errno::from_raw(error.raw_os_error().unwrap_or_default()),
            )
        })?;
        let mut hints = Vec::new();
        while hints.len() < BATCH {
            let fd = guard.get_inner().as_raw_fd();
            match recv(fd, &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => match self.buffer.get(..length) {
                    Some(datagram) => read(datagram, &mut hints),
                    None => hints.push(Hint::Resync),
                },
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => hints.push(Hint::Resync),
                Err(errno) => return Err(failed("recv", errno)),
            }
        }
        Ok(hints)
    }
}

/// A socket on which the kernel multicasts what `groups` are about; must be opened in
/// a runtime, in this thread's network namespace.
pub(super) fn multicast(
    protocol: SockProtocol,
    groups: &[u32],
    receive_buffer: usize,
) -> Result<AsyncFd<OwnedFd>, NetlinkError> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        protocol,
    )
    .map_err(|errno| failed("socket", errno))?;
    // The forced size needs NET_ADMIN in the first user namespace; a smaller
    // buffer only means that a burst ends in one more look.
    if setsockopt(&fd, sockopt::RcvBufForce, &receive_buffer).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &receive_buffer);
    }
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| failed("bind", errno))?;
    for group in groups {
        setsockopt(&fd, AddMembership, group)
            .map_err(|errno| failed("setsockopt NETLINK_ADD_MEMBERSHIP", errno))?;
    }
    // Deprecated because a foreign type could lie about its descriptor; an
    // OwnedFd cannot, and the successor is for unsafe code only.
    #[expect(deprecated)]
    AsyncFd::with_interest(fd, Interest::READABLE).map_err(|error| {
        failed(
            "epoll_ctl",
            Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        )
    })
}

fn read(mut rest: &[u8], hints: &mut Vec<Hint>) {
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            hints.push(Hint::Resync);
            return;
        };
        if message.message_type() == RTM_NEWNETCONF {
            hints.extend(settings(message.payload()));
        } else {
            let mut header = NetlinkHeader::default();
            header.message_type = message.message_type();
            // What cannot be decoded is nothing that we made.
            if let Ok(message) = Message::deserialize(&header, message.payload()) {
                hints.extend(hint(message));
            }
        }
        let advance = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(advance..).unwrap_or_default();
    }
}

fn hint(message: Message) -> Option<Hint> {
    let gone = matches!(
        message,
        Message::DelLink(_)
            | Message::DelAddress(_)
            | Message::DelRoute(_)
            | Message::DelNeighbour(_)
    );
    match message {
        Message::NewLink(m) | Message::DelLink(m) => {
            let (name, link) = decode::link(&m)?;
            Some(Hint::Link {
                index: m.header.index,
                name,
                now: (!gone).then(|| Box::new(link)),
            })
        }
        Message::NewAddress(m) | Message::DelAddress(m) => {
            let (index, address, prefix_len) = decode::address(&m)?;
            Some(Hint::Address {
                index,
                address,
                prefix_len,
                gone,
            })
        }
        Message::NewRoute(m) | Message::DelRoute(m) => {
            let found = decode::route(&m)?;
            Some(Hint::Route {
                route: found.route,
                index: found.link,
                ours: found.ours,
                gone,
            })
        }
        Message::NewNeighbour(m) | Message::DelNeighbour(m) => {
            if let Some(found) = decode::fdb(&m) {
                return Some(Hint::Fdb {
                    index: found.link,
                    mac: found.mac,
                    remote: found.remote.filter(|_| found.plain),
                    gone,
                });
            }
            let (index, address, mac) = decode::neighbour(&m)?;
            Some(Hint::Neighbour {
                index,
                address,
                mac: mac.filter(|_| !gone),
            })
        }
        _ => None,
    }
}

/// `NETCONFA_*` of `linux/netconf.h`.
const CONF_IFINDEX: u16 = 1;
const CONF_FORWARDING: u16 = 2;
const CONF_RP_FILTER: u16 = 3;
const CONF_PROXY_NEIGH: u16 = 5;

/// `NETCONFA_IFINDEX_ALL`: what a host has chosen for all links.
const ALL_LINKS: i32 = -1;

/// Settings of one link or of the host, after a family byte padded to four.
fn settings(payload: &[u8]) -> Option<Hint> {
    let (mut index, mut forwarding, mut rp_filter, mut proxy_arp) = (None, None, None, None);
    for nla in NlasIterator::new(payload.get(4..)?).filter_map(Result::ok) {
        let Ok(bytes) = <[u8; 4]>::try_from(nla.value()) else {
            continue;
        };
        let value = i32::from_ne_bytes(bytes);
        match nla.kind() {
            CONF_IFINDEX => index = Some(value),
            CONF_FORWARDING => forwarding = Some(value != 0),
            CONF_RP_FILTER => rp_filter = Some(value.try_into().unwrap_or(u8::MAX)),
            CONF_PROXY_NEIGH => proxy_arp = Some(value != 0),
            _ => {}
        }
    }
    if index == Some(ALL_LINKS) {
        let rp_filter = Some(rp_filter?);
        return Some(Hint::Host(Host { rp_filter }));
    }
    Some(Hint::Settings {
        // Negative for those of links to come.
        index: u32::try_from(index?).ok()?,
        forwarding,
        rp_filter,
        proxy_arp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_links_and_of_the_host_are_read_and_others_ignored() {
        let nla = |kind: u16, value: i32| {
            let mut bytes = 8u16.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
            bytes
        };
        let message = |index: i32| {
            let mut bytes = vec![2, 0, 0, 0];
            bytes.extend(nla(CONF_IFINDEX, index));
            bytes.extend(nla(CONF_RP_FILTER, 1));
            bytes
        };
        assert_eq!(
            settings(&message(7)),
            Some(Hint::Settings {
                index: 7,
                forwarding: None,
                rp_filter: Some(1),
                proxy_arp: None,
            })
        );
        let rp_filter = Some(1);
        assert_eq!(settings(&message(-1)), Some(Hint::Host(Host { rp_filter })));
        assert_eq!(settings(&message(-2)), None);
        assert_eq!(settings(&[2]), None);
    }

    #[test]
    fn nonsense_leads_to_one_full_look() {
        let mut hints = Vec::new();
        read(&[1, 2, 3, 4, 5], &mut hints);
        assert_eq!(hints, [Hint::Resync]);
    }
}
