//! A payload there and another one back over TCP, both checked by hash.
//!
//! The client sends its payload and then reads; the server reads all, answers
//! with the hash of what it read, the address that it saw the client come from,
//! and a payload of its own, of which the client checks the hash.

use std::hash::Hasher;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::environment::scaled;

/// For a connection; longer than it takes to send a lost SYN twice more is of no use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Random bytes with their hash.
#[derive(Debug, Clone)]
pub struct Payload {
    bytes: Arc<[u8]>,
    hash: u128,
}

impl Payload {
    /// Draws `length` random bytes.
    pub fn random(length: usize) -> Self {
        Self::drawn_from(&mut rand::rng(), length)
    }

    /// The bytes that belong to a seed: the same wherever they are drawn, for a
    /// server and a client that do not share memory.
    pub fn of_seed(seed: u64, length: usize) -> Self {
        Self::drawn_from(&mut rand::rngs::StdRng::seed_from_u64(seed), length)
    }

    fn drawn_from(rng: &mut impl Rng, length: usize) -> Self {
        let mut bytes = vec![0; length];
        rng.fill_bytes(&mut bytes);
        let hash = hash(&bytes);
        Self {
            bytes: bytes.into(),
            hash,
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn hash(bytes: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

/// What an exchange found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The address that the server saw the client come from.
    pub seen: IpAddr,
}

/// A server in a namespace, until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    netns: std::path::PathBuf,
}

impl Server {
    /// Listens on `ip` and a port that is free, inside `netns`.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn start(netns: &Path, ip: IpAddr, payload: &Payload) -> Result<Self> {
        let listener = crate::netns::within(netns, || {
            TcpListener::bind((ip, 0)).with_context(|| format!("listening on {ip}"))
        })?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, payload) = (Arc::clone(&stop), payload.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream {
                    let payload = payload.clone();
                    // The client sees and tells what went wrong.
                    std::thread::spawn(move || answer(stream, &payload));
                }
            }
        });
        Ok(Self {
            address,
            stop,
            netns: netns.to_owned(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener so that it sees that.
        let _ = crate::netns::within(&self.netns, || {
            TcpStream::connect_timeout(&self.address, Duration::from_millis(100))?;
            Ok(())
        });
    }
}

fn answer(mut stream: TcpStream, payload: &Payload) -> Result<()> {
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let peer = stream.peer_addr()?.ip();
    let head = format!("{} {:032x} {peer}\n", bytes.len(), hash(&bytes));
    stream.write_all(head.as_bytes())?;
    stream.write_all(&payload.bytes)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Exchanges `payload` with a [`Server`] that has the same one, from inside
/// `netns`.
///
/// # Errors
/// When it cannot be reached, or a byte is missing or another than was sent.
pub fn transfer(netns: &Path, server: SocketAddr, payload: &Payload) -> Result<Transfer> {
    let mut stream = crate::netns::within(netns, || {
        Ok(TcpStream::connect_timeout(
            &server,
            scaled(CONNECT_TIMEOUT),
        )?)
    })
    .context("connecting")?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    stream.write_all(&payload.bytes).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    check(&answer, payload)
}

fn check(answer: &[u8], payload: &Payload) -> Result<Transfer> {
    let end = answer
        .iter()
        .position(|b| *b == b'\n')
        .context("the server's answer was cut off")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = &answer[end + 1..];
    let fields: Vec<&str> = head.split(' ').collect();
    let [length, there, seen] = fields[..] else {
        anyhow::bail!("the server's answer is not one: {head}");
    };
    ensure!(
        length == payload.len().to_string() && there == format!("{:032x}", payload.hash),
        "the server received {length} bytes with hash {there}, but {} with hash {:032x} were sent",
        payload.len(),
        payload.hash
    );
    let back = hash(body);
    ensure!(
        back == payload.hash,
        "{} bytes with hash {back:032x} came back, but {} with hash {:032x} were sent",
        body.len(),
        payload.len(),
        payload.hash
    );
    Ok(Transfer {
        seen: seen.parse().context("the address that the server saw")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_its_bytes() {
        assert_eq!(Payload::of_seed(7, 99).hash, Payload::of_seed(7, 99).hash);
        assert_ne!(Payload::of_seed(7, 99).hash, Payload::of_seed(8, 99).hash);
    }

    #[test]
    fn damage_on_the_way_is_noticed() {
        let payload = Payload::random(1000);
        let head = format!("1000 {:032x} 10.0.0.1\n", payload.hash);
        let mut answer = head.clone().into_bytes();
        answer.extend_from_slice(&payload.bytes);
        assert_eq!(
            check(&answer, &payload).unwrap().seen,
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
        let last = answer.len() - 1;
        answer[last] ^= 1;
        assert!(check(&answer, &payload).is_err());
        answer.truncate(last);
        assert!(check(&answer, &payload).is_err());
        let lost = head.replace("1000 ", "999 ").into_bytes();
        assert!(check(&lost, &payload).is_err());
        assert!(check(b"", &payload).is_err());
    }
}
