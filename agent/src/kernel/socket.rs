//! A small synchronous transport over one NETLINK_ROUTE socket.
//!
//! Called by the reconciler's kernel thread and by the pod wiring, each with a
//! socket of its own. It knows sequence numbers, acknowledgements and dumps,
//! and nothing of what the messages mean. It never waits without a limit.
//!
//! A socket belongs for ever to the network namespace that it was opened in,
//! whoever holds it: that is how pods are wired without entering their namespace.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::error::{NetlinkError, parse_ack};
use super::options::{CappedAck, ExtendedAck, StrictCheck};

/// The longest wait for one answer. The kernel answers within the call that sends,
/// so that this only ends a wait that nothing would end.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Requests in one send. Should the kernel refuse all of them, its answers still
/// fit a receive buffer of the default size (208 KiB, about 1 KiB an answer).
const BATCH: usize = 64;

/// What the kernel may queue for us, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The length of a netlink message's header in bytes.
const NETLINK_HEADER: usize = 16;

/// The kernel fills datagrams of up to 32 KiB in a dump; one object may be longer.
const READ_BUFFER: usize = 128 << 10;

/// How often a dump is begun anew because a change came between its parts.
const DUMP_ATTEMPTS: u32 = 16;

/// One change to be made: a message and the flags that say how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// Flags beside `NLM_F_REQUEST`, such as `NLM_F_CREATE | NLM_F_EXCL`.
    pub flags: u16,
}

impl Request {
    /// A request with `flags` beside `NLM_F_REQUEST`.
    pub fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags }
    }
}

/// A NETLINK_ROUTE socket.
#[derive(Debug)]
pub struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    read: Vec<u8>,
    write: Vec<u8>,
}

/// What the caller of [`NetlinkSocket::receive`] makes of one message.
enum Step {
    More,
    Finished,
}

impl NetlinkSocket {
    /// Opens a socket in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map_err(|errno| failed("socket", errno))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| failed("bind", errno))?;
        Self::from_fd(fd)
    }

    /// Takes over a socket that somebody else opened, maybe in another network
    /// namespace. Its requests act in the namespace that it was opened in.
    ///
    /// # Errors
    /// When it is no netlink socket, or too old a kernel's.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetlinkError> {
        let option = |what: &'static str| move |errno| failed(what, errno);
        setsockopt(&fd, ExtendedAck, &true).map_err(option("setsockopt NETLINK_EXT_ACK"))?;
        setsockopt(&fd, CappedAck, &true).map_err(option("setsockopt NETLINK_CAP_ACK"))?;
        setsockopt(&fd, StrictCheck, &true).map_err(option("setsockopt NETLINK_GET_STRICT_CHK"))?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(ANSWER_LIMIT.as_millis() as i64),
        )
        .map_err(option("setsockopt SO_RCVTIMEO"))?;
        // The forced size needs NET_ADMIN in the first user namespace. Batches fit
        // the default too, so that neither is worth failing for.
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        Ok(Self {
            fd,
            sequence: 0,
            read: vec![0; READ_BUFFER],
            write: Vec::with_capacity(32 << 10),
        })
    }

    /// Carries out `requests` in order and says of each how it went; a refusal of
    /// one does not stop the next.
    ///
    /// The kernel is asked to acknowledge only the last of each batch: it works
    /// them off in order and always answers a refusal, so that silence about the
    /// others is success.
    pub fn execute(&mut self, requests: &[Request]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            let done = results.len();
            results.resize(done + batch.len(), Ok(()));
            if let Err(error) = self.execute_batch(batch, &mut results[done..]) {
                // What the kernel did with them is unknown: none may count as done.
                results[done..].fill(Err(error));
            }
        }
        results
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// The kernel's refusal, or what the socket suffered.
    pub fn execute_one(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.execute(&[request]).pop().unwrap_or(Ok(()))
    }

    /// Asks one question, or makes one change with `NLM_F_ECHO`, and returns what
    /// the kernel said before it acknowledged.
    ///
    /// # Errors
    /// The kernel's refusal, or what the socket suffered.
    pub fn request(&mut self, request: Request) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let first = self.next_sequence(1);
        self.write.clear();
        self.push(&request.message, request.flags | NLM_F_ACK, first);
        self.send()?;
        let mut answers = Vec::new();
        self.receive(|message| {
            if message.sequence_number() != first {
                return Ok(Step::More);
            }
            if message.message_type() == NLMSG_ERROR {
                parse_ack(message.flags(), message.payload())?;
                return Ok(Step::Finished);
            }
            answers.push(decode(message)?);
            Ok(Step::More)
        })?;
        Ok(answers)
    }

    /// Lists what matches `message`. A list that changes between its parts is
    /// begun anew, so that the answer is one moment's.
    ///
    /// An object that this release cannot decode is left out and logged: it is
    /// somebody else's, and must not blind us to our own.
    ///
    /// # Errors
    /// The kernel's refusal, or what the socket suffered.
    pub fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let consistent = self.dump_once(message, &mut found)?;
            if consistent {
                return Ok(found);
            }
        }
        Err(NetlinkError::Interrupted(DUMP_ATTEMPTS))
    }

    fn dump_once(
        &mut self,
        message: &RouteNetlinkMessage,
        found: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<bool, NetlinkError> {
        let sequence = self.next_sequence(1);
        self.write.clear();
        self.push(message, NLM_F_DUMP, sequence);
        self.send()?;
        let mut consistent = true;
        self.receive(|message| {
            if message.sequence_number() != sequence {
                return Ok(Step::More);
            }
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                consistent = false;
            }
            match message.message_type() {
                NLMSG_DONE => {
                    if !message.payload().is_empty() {
                        parse_ack(0, message.payload())?;
                    }
                    return Ok(Step::Finished);
                }
                NLMSG_ERROR => {
                    parse_ack(message.flags(), message.payload())?;
                    return Ok(Step::Finished);
                }
                _ => match decode(message) {
                    Ok(object) => found.push(object),
                    Err(error) => tracing::warn!(%error, "an object of the kernel is left out"),
                },
            }
            Ok(Step::More)
        })?;
        Ok(consistent)
    }

    fn execute_batch(
        &mut self,
        batch: &[Request],
        results: &mut [Result<(), NetlinkError>],
    ) -> Result<(), NetlinkError> {
        let first = self.next_sequence(batch.len() as u32);
        let last = batch.len() - 1;
        self.write.clear();
        for (i, request) in batch.iter().enumerate() {
            let ack = if i == last { NLM_F_ACK } else { 0 };
            self.push(
                &request.message,
                request.flags | ack,
                first.wrapping_add(i as u32),
            );
        }
        self.send()?;
        self.receive(|message| {
            let index = message.sequence_number().wrapping_sub(first) as usize;
            if message.message_type() != NLMSG_ERROR || index >= results.len() {
                return Ok(Step::More);
            }
            results[index] = parse_ack(message.flags(), message.payload());
            Ok(if index == last {
                Step::Finished
            } else {
                Step::More
            })
        })
    }

    /// Reserves `count` sequence numbers and returns the first.
    fn next_sequence(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Writes a message behind those that wait to be sent, without a copy of it.
    fn push(&mut self, message: &RouteNetlinkMessage, flags: u16, sequence: u32) {
        let start = self.write.len();
        let body = start + NETLINK_HEADER;
        let end = body + NetlinkSerializable::buffer_len(message);
        let mut header = NetlinkHeader::default();
        header.length = (end - start) as u32;
        header.message_type = message.message_type();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = sequence;
        self.write.resize(end.next_multiple_of(4), 0);
        header.emit(&mut self.write[start..body]);
        message.serialize(&mut self.write[body..end]);
    }

    fn send(&self) -> Result<(), NetlinkError> {
        loop {
            match send(self.fd.as_raw_fd(), &self.write, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("send", errno)),
            }
        }
    }

    /// Hands each message that comes to `take` until that is finished.
    fn receive(
        &mut self,
        mut take: impl FnMut(&NetlinkBuffer<&[u8]>) -> Result<Step, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.read, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Err(NetlinkError::Timeout(ANSWER_LIMIT)),
                Err(errno) => return Err(failed("recv", errno)),
            };
            let Some(mut rest) = self.read.get(..length) else {
                return Err(NetlinkError::Malformed(format!(
                    "{length} bytes in one datagram, more than the {READ_BUFFER} that are read"
                )));
            };
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest)
                    .map_err(|error| NetlinkError::Malformed(error.to_string()))?;
                let step = match message.message_type() {
                    NLMSG_NOOP => Step::More,
                    NLMSG_OVERRUN => return Err(failed("recv", Errno::ENOBUFS)),
                    _ => take(&message)?,
                };
                if let Step::Finished = step {
                    return Ok(());
                }
                let advance = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(advance..).unwrap_or_default();
            }
        }
    }
}

fn decode(message: &NetlinkBuffer<&[u8]>) -> Result<RouteNetlinkMessage, NetlinkError> {
    let mut header = NetlinkHeader::default();
    header.length = message.length();
    header.message_type = message.message_type();
    header.flags = message.flags();
    RouteNetlinkMessage::deserialize(&header, message.payload())
        .map_err(|error| NetlinkError::Malformed(error.to_string()))
}

pub(super) fn failed(call: &'static str, errno: Errno) -> NetlinkError {
    NetlinkError::Socket { call, errno }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    // Reading needs no privilege and changes nothing, so that these run anywhere.

    fn loopback() -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName("lo".into()));
        message
    }

    #[test]
    fn a_dump_lists_the_loopback_link() {
        let mut socket = NetlinkSocket::open().unwrap();
        let links = socket
            .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .unwrap();
        assert!(links.iter().any(|link| matches!(
            link,
            RouteNetlinkMessage::NewLink(l) if l.attributes.contains(&LinkAttribute::IfName("lo".into()))
        )));
    }

    #[test]
    fn a_question_about_one_link_is_answered() {
        let mut socket = NetlinkSocket::open().unwrap();
        let answers = socket
            .request(Request::new(RouteNetlinkMessage::GetLink(loopback()), 0))
            .unwrap();
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn each_request_of_many_batches_has_its_own_answer() {
        let mut missing = LinkMessage::default();
        missing
            .attributes
            .push(LinkAttribute::IfName("via-nothing".into()));
        let requests: Vec<_> = (0..BATCH * 2 + 7)
            .map(|i| {
                let message = if i % 3 == 0 {
                    missing.clone()
                } else {
                    loopback()
                };
                Request::new(RouteNetlinkMessage::GetLink(message), 0)
            })
            .collect();
        let mut socket = NetlinkSocket::open().unwrap();
        let results = socket.execute(&requests);
        assert_eq!(results.len(), requests.len());
        for (i, result) in results.iter().enumerate() {
            let gone = matches!(result, Err(e) if e.already_gone());
            assert_eq!(gone, i % 3 == 0, "request {i}: {result:?}");
            assert_eq!(result.is_ok(), i % 3 != 0, "request {i}: {result:?}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_netlink_socket_is_refused() {
        let fd = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(matches!(
            NetlinkSocket::from_fd(fd),
            Err(NetlinkError::Socket { .. })
        ));
    }
}
