//! ICMP echo from inside a namespace, for timing single replies.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use viaduct_lab::netns;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// As `ping` sends by default.
const PAYLOAD: usize = 56;

/// An ICMP socket in a namespace.
#[derive(Debug)]
pub(crate) struct Pinger {
    socket: Socket,
    identifier: u16,
}

impl Pinger {
    /// Opens a socket in the namespace at `path`; `identifier` tells its echoes
    /// from others in that namespace.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn open(path: &Path, identifier: u16) -> Result<Self> {
        let socket = netns::within(path, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("an ICMP socket")
        })?;
        Ok(Self { socket, identifier })
    }

    /// Sends echoes until one is answered, a new one every `interval`; the answer
    /// is when that was.
    ///
    /// # Errors
    /// When there is none within `timeout`.
    pub(crate) fn first_reply(
        &self,
        to: Ipv4Addr,
        interval: Duration,
        timeout: Duration,
    ) -> Result<Instant> {
        let start = Instant::now();
        let mut sequence = 0;
        while start.elapsed() < timeout {
            // No route yet is no reply yet.
            let _ = self.send(to, sequence);
            if self.receive(to, None, interval)? {
                return Ok(Instant::now());
            }
            sequence = sequence.wrapping_add(1);
        }
        bail!("{to} has not replied within {timeout:?}")
    }

    /// The round trip times of `count` echoes, one after the other.
    ///
    /// # Errors
    /// When one of them is lost.
    pub(crate) fn round_trips(&self, to: Ipv4Addr, count: u16) -> Result<Vec<Duration>> {
        (0..count)
            .map(|sequence| {
                let sent = Instant::now();
                self.send(to, sequence)
                    .with_context(|| format!("an echo to {to}"))?;
                if !self.receive(to, Some(sequence), Duration::from_secs(1))? {
                    bail!("{to} has not replied to echo {sequence} within a second");
                }
                Ok(sent.elapsed())
            })
            .collect()
    }

    fn send(&self, to: Ipv4Addr, sequence: u16) -> std::io::Result<()> {
        let packet = request(self.identifier, sequence);
        self.socket
            .send_to(&packet, &SocketAddrV4::new(to, 0).into())
            .map(drop)
    }

    /// Whether a reply from `from` comes before `timeout` is over.
    fn receive(&self, from: Ipv4Addr, sequence: Option<u16>, timeout: Duration) -> Result<bool> {
        let end = Instant::now() + timeout;
        let mut packet = [0; 256];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut packet) {
                Ok(length) => match reply(&packet[..length]) {
                    Some((source, identifier, answered))
                        if source == from
                            && identifier == self.identifier
                            && sequence.is_none_or(|s| s == answered) =>
                    {
                        return Ok(true);
                    }
                    _ => {}
                },
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // An ICMP error about an earlier echo.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
                    ) => {}
                Err(e) => return Err(e).context("reading an ICMP socket"),
            }
        }
    }
}

fn request(identifier: u16, sequence: u16) -> [u8; 8 + PAYLOAD] {
    let mut packet = [0; 8 + PAYLOAD];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&identifier.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The source, identifier and sequence number of an echo reply in an IPv4 packet.
fn reply(packet: &[u8]) -> Option<(Ipv4Addr, u16, u16)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let icmp = packet.get(header..header + 8)?;
    (icmp[0] == ECHO_REPLY).then(|| {
        (
            source.into(),
            u16::from_be_bytes([icmp[4], icmp[5]]),
            u16::from_be_bytes([icmp[6], icmp[7]]),
        )
    })
}

/// The internet checksum (RFC 1071) of an even number of octets.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_its_checksum_sums_to_nothing() {
        assert_eq!(checksum(&request(0x1234, 7)), 0);
        assert_eq!(checksum(&[0xff, 0xff, 0x00, 0x01]), 0xfffe);
    }

    #[test]
    fn only_echo_replies_are_replies() {
        let mut packet = vec![
            0x45, 0, 0, 84, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        packet.extend([ECHO_REPLY, 0, 0, 0, 0x12, 0x34, 0, 7]);
        assert_eq!(reply(&packet), Some(([10, 0, 0, 1].into(), 0x1234, 7)));
        packet[20] = ECHO_REQUEST;
        assert_eq!(reply(&packet), None);
        assert_eq!(reply(&packet[..25]), None);
        assert_eq!(reply(&[]), None);
    }
}
