//! Counting what is really on the underlay: an `AF_PACKET` socket beside the
//! bridge sees every frame that enters one of its ports.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::options::Carriage;
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};

/// The UDP port of VXLAN that Viaduct uses.
pub const VXLAN_PORT: u16 = 8472;

/// The IP protocol number of IPv4 in IPv4.
const IPIP: u8 = 4;

/// `PACKET_OUTGOING`: the frame's second sighting, on its way out of the bridge.
const OUTGOING: u8 = 4;

/// What was on the wire: packets by inner source and destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets in VXLAN, by the addresses inside.
    pub inside: BTreeMap<(Ipv4Addr, Ipv4Addr), u64>,
    /// Packets in another IPv4 packet (RFC 2003), by the addresses inside.
    pub in_ipip: BTreeMap<(Ipv4Addr, Ipv4Addr), u64>,
    /// IPv4 packets that were in neither, by their own addresses.
    pub bare: BTreeMap<(Ipv4Addr, Ipv4Addr), u64>,
}

impl Seen {
    /// All packets in VXLAN.
    pub fn vxlan_packets(&self) -> u64 {
        self.inside.values().sum()
    }

    /// What crossed in one way, by the packets' own addresses.
    pub fn carried(&self, carriage: Carriage) -> &BTreeMap<(Ipv4Addr, Ipv4Addr), u64> {
        match carriage {
            Carriage::Vxlan => &self.inside,
            Carriage::Ipip => &self.in_ipip,
            Carriage::Plain => &self.bare,
        }
    }

    /// Counts a frame as it stands on the underlay.
    pub fn count(&mut self, frame: &[u8]) {
        let Some(outer) = Ip::of_frame(frame) else {
            return;
        };
        let carried = outer
            .udp_payload_to(VXLAN_PORT)
            .and_then(|vxlan| vxlan.get(8..));
        if outer.protocol == IPIP {
            if let Some(inner) = Ip::of_packet(outer.payload) {
                let key = (inner.source, inner.destination);
                *self.in_ipip.entry(key).or_default() += 1;
            }
            return;
        }
        let (map, ip) = match carried {
            Some(inner) => match Ip::of_frame(inner) {
                Some(ip) => (&mut self.inside, ip),
                None => return,
            },
            None => (&mut self.bare, outer),
        };
        *map.entry((ip.source, ip.destination)).or_default() += 1;
    }
}

/// An IPv4 packet, as far as it was captured.
struct Ip<'a> {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn of_frame(frame: &'a [u8]) -> Option<Self> {
        if frame.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        Self::of_packet(&frame[14..])
    }

    fn of_packet(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let address = |at: usize| -> Option<Ipv4Addr> {
            Some(Ipv4Addr::from(
                <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
            ))
        };
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: *packet.get(9)?,
            payload: packet.get(header..)?,
        })
    }

    fn udp_payload_to(&self, port: u16) -> Option<&'a [u8]> {
        let to = self.payload.get(2..4)?;
        (self.protocol == 17 && to == port.to_be_bytes()).then(|| self.payload.get(8..))?
    }
}

/// A running count.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Capture {
    /// Starts counting in the namespace that the lab itself, and so the underlay's
    /// bridge, is in.
    ///
    /// # Errors
    /// When the kernel does not give us the socket.
    pub fn start() -> Result<Self> {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .context("a packet socket")?;
        // As much as we are allowed; a lost count is no lost packet.
        let _ = setsockopt(&fd, sockopt::RcvBuf, &(8 << 20));
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20));
        let patience = nix::sys::time::TimeVal::new(0, 20_000);
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || count(&fd, &stopped));
        Ok(Self { stop, thread })
    }

    /// Stops and says what was seen.
    ///
    /// # Errors
    /// What the socket failed at meanwhile.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the counting thread panicked"))?
    }
}

fn count(fd: &OwnedFd, stop: &AtomicBool) -> Result<Seen> {
    use nix::errno::Errno;
    let mut seen = Seen::default();
    let mut frame = [0; 160];
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut frame) {
            Ok((length, from)) => {
                // Every frame enters by a bridge port first; counted there alone.
                if from.is_some_and(|a| a.pkttype() != OUTGOING) {
                    seen.count(&frame[..length.min(frame.len())]);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) if stop.load(Ordering::Relaxed) => return Ok(seen),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENETDOWN) => {}
            Err(error) => return Err(error).context("reading the packet socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn inner_addresses_are_found_inside_vxlan_only() {
        let inner = frame([10, 64, 0, 2], [10, 64, 0, 66], 1, &[]);
        let mut udp = vec![0xc0, 0, 0x21, 0x18, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0];
        udp.extend(&inner);
        let outer = frame([172, 29, 0, 11], [172, 29, 0, 12], 17, &udp);
        let mut seen = Seen::default();
        seen.count(&outer);
        seen.count(&inner);
        seen.count(&outer[..40]);
        seen.count(&[]);
        let pair = (Ipv4Addr::new(10, 64, 0, 2), Ipv4Addr::new(10, 64, 0, 66));
        assert_eq!(seen.inside, BTreeMap::from([(pair, 1)]));
        assert_eq!(seen.bare.get(&pair), Some(&1));
        assert_eq!(seen.vxlan_packets(), 1);
    }

    #[test]
    fn packets_in_ipip_are_told_from_plain_ones() {
        let inner = frame([10, 64, 0, 2], [10, 64, 0, 66], 1, &[]);
        let outer = frame([172, 29, 0, 11], [172, 29, 0, 12], 4, &inner[14..]);
        let mut seen = Seen::default();
        seen.count(&outer);
        seen.count(&outer[..34]);
        let pair = (Ipv4Addr::new(10, 64, 0, 2), Ipv4Addr::new(10, 64, 0, 66));
        assert_eq!(*seen.carried(Carriage::Ipip), BTreeMap::from([(pair, 1)]));
        assert!(seen.carried(Carriage::Plain).is_empty());
        assert!(seen.carried(Carriage::Vxlan).is_empty());
    }
}
