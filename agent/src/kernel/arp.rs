//! Tells the neighbours where an address is now: ARP announcements (RFC 5227, section 2.3),
//! which the kernel sends for us, as sending them ourselves would take `CAP_NET_RAW`.
//!
//! The kernel is told to use a neighbour entry of our *own* address, and asks the link who
//! has it: a request whose sender and target are the same, which is what an announcement
//! is. It sends three, a second apart. Used by the steward alone; nothing of it is desired
//! state.

use std::net::Ipv4Addr;
use std::time::Duration;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{NetlinkError, NetlinkSocket, Request, encode};

/// After how long the kernel has sent all it will: three requests, one a second
/// (`mcast_solicit` and `retrans_time_ms` of the kernel's neighbour table).
pub const LASTS: Duration = Duration::from_millis(3500);

/// An address that is announced on a link.
#[derive(Debug, Clone, Copy)]
pub struct Announcement {
    /// The index of the link.
    pub link: u32,
    /// An address that the link has.
    pub address: Ipv4Addr,
}

impl Announcement {
    /// Has the first one sent; more follow.
    ///
    /// # Errors
    /// The kernel's refusal, or what the socket suffered.
    pub fn begin(&self) -> Result<(), NetlinkError> {
        let mut entry = encode::neighbour(self.link, self.address);
        entry.header.state = NeighbourState::None;
        entry.header.flags = NeighbourFlags::Use;
        self.ask(Request::new(Message::NewNeighbour(entry), NLM_F_CREATE))
    }

    /// Takes the entry away, which nobody has answered.
    ///
    /// # Errors
    /// When the link or the entry is gone, or what the socket suffered.
    pub fn end(&self) -> Result<(), NetlinkError> {
        self.ask(encode::remove_neighbour(self.link, self.address))
    }

    fn ask(&self, request: Request) -> Result<(), NetlinkError> {
        NetlinkSocket::open()?.request(request).map(drop)
    }
}
