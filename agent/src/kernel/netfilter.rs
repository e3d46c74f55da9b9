//! A small transport over NETLINK_NETFILTER, since the crates at hand know none of its
//! messages: questions and their answers, one after the other. Used by `conntrack` and
//! `nftables`, which know what the messages mean.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::error::{NetlinkError, parse_ack};
use super::socket::{ANSWER_LIMIT, failed};

const HEADER: usize = 16;

/// The socket. Its calls block.
#[derive(Debug)]
pub(super) struct Netfilter {
    fd: OwnedFd,
    sequence: u32,
    read: Vec<u8>,
}

impl Netfilter {
    /// Opens it in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(|errno| failed("socket", errno))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| failed("bind", errno))?;
        let limit = TimeVal::milliseconds(ANSWER_LIMIT.as_millis() as i64);
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit)
            .map_err(|errno| failed("setsockopt SO_RCVTIMEO", errno))?;
        Ok(Self {
            fd,
            sequence: 0,
            read: vec![0; 64 << 10],
        })
    }

    /// Asks; `generic` is the `struct nfgenmsg` before the attributes.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        generic: [u8; 4],
        attributes: &[u8],
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + generic.len() + attributes.len();
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(generic);
        message.extend(attributes);
        loop {
            match send(self.fd.as_raw_fd(), &message, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("send", errno)),
            }
        }
    }

    /// Hands the payload of each answer to `take`, until the kernel says that it is done.
    ///
    /// # Errors
    /// The kernel's refusal, or what the socket suffers.
    pub(super) fn answers(&mut self, mut take: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.read, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(NetlinkError::Timeout(ANSWER_LIMIT)),
                Err(errno) => return Err(failed("recv", errno)),
            };
            let mut rest = self.read.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest)
                    .map_err(|error| NetlinkError::Malformed(error.to_string()))?;
                if message.sequence_number() == self.sequence {
                    match message.message_type() {
                        NLMSG_DONE => return Ok(()),
                        NLMSG_ERROR => return parse_ack(message.flags(), message.payload()),
                        _ => take(message.payload()),
                    }
                }
                let advance = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(advance..).unwrap_or_default();
            }
        }
    }
}
