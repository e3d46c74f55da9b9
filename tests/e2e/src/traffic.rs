//! A UDP and a TCP stream between two pods, to see whether anything is lost while
//! something happens: each datagram has a number, and of the connection the kernel
//! counts what it had to send again.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use viaduct_lab::{Pod, command, netns};

/// Between two datagrams: 1,000 a second.
const PACE: Duration = Duration::from_millis(1);

/// What TCP sends every ten milliseconds, in bytes: enough that each interruption is
/// felt, little enough that a busy machine keeps up.
const PIECE: usize = 8 << 10;

/// How long TCP may take until all that it sent is acknowledged, and nothing has changed
/// for [`QUIET`].
const SETTLED: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(300);

/// What may wait for the receiver, in bytes.
const BUFFER: usize = 4 << 20;

/// How long the last datagram may be under way.
const STRAGGLER: Duration = Duration::from_secs(1);

/// What the streams came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Datagrams that were sent.
    pub sent: u32,
    /// The numbers of those that did not arrive.
    pub lost: Vec<u32>,
    /// Segments that TCP lost, until [`Traffic::mark`] and from there on.
    pub retransmitted: (u64, u64),
    /// Bytes that TCP carried.
    pub bytes: u64,
}

/// Both streams, running.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u32>>,
    receiver: JoinHandle<Result<Vec<bool>>>,
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<u64>>,
    from: PathBuf,
    hold: Arc<AtomicBool>,
    port: u16,
    /// The segments that were lost until the mark.
    marked: Option<u64>,
}

impl Traffic {
    /// Begins.
    ///
    /// # Errors
    /// When the pods do not reach each other.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        let any = |pod: &Pod| SocketAddr::new(pod.ip, 0);
        let sink = netns::within(&to.netns, || Ok(UdpSocket::bind(any(to))?))?;
        sink.set_read_timeout(Some(Duration::from_millis(20)))?;
        // As much as we are allowed: on a busy machine a late sender catches up in a
        // burst, and what a full buffer drops was carried all the same.
        let _ = setsockopt(&sink, sockopt::RcvBuf, &BUFFER);
        let _ = setsockopt(&sink, sockopt::RcvBufForce, &BUFFER);
        let source = netns::within(&from.netns, || Ok(UdpSocket::bind(any(from))?))?;
        source.connect(sink.local_addr()?)?;
        let listener = netns::within(&to.netns, || Ok(TcpListener::bind(any(to))?))?;
        let target = listener.local_addr()?;
        let patience = Duration::from_secs(5);
        let client = netns::within(&from.netns, || {
            Ok(TcpStream::connect_timeout(&target, patience)?)
        })
        .context("connecting pod to pod")?;
        let (server, _) = listener.accept()?;
        let port = client.local_addr()?.port();

        let (stop, hold) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let flag = || Arc::clone(&stop);
        let (sending, receiving, writing) = (flag(), flag(), flag());
        let held = Arc::clone(&hold);
        let traffic = Self {
            sender: std::thread::spawn(move || send(&source, &sending)),
            receiver: std::thread::spawn(move || receive(&sink, &receiving)),
            writer: std::thread::spawn(move || write(client, &writing, &held)),
            reader: std::thread::spawn(move || read(server)),
            from: from.netns.clone(),
            hold,
            port,
            stop,
            marked: None,
        };
        // Both flow when something happens to them.
        std::thread::sleep(Duration::from_millis(500));
        Ok(traffic)
    }

    /// Ends what happens to the streams; what is lost from here on is lost while nothing
    /// happens.
    ///
    /// # Errors
    /// When TCP does not come to rest.
    pub fn mark(&mut self) -> Result<()> {
        self.marked = Some(self.settled()?);
        Ok(())
    }

    /// Segments that were lost so far. TCP pauses for that until all is acknowledged:
    /// only then is known which of the segments that were sent again had arrived
    /// already.
    fn settled(&self) -> Result<u64> {
        self.hold.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let (mut text, mut since) = (String::new(), begun);
        while since.elapsed() < QUIET {
            ensure!(
                begun.elapsed() < SETTLED,
                "TCP does not come to rest: {text}"
            );
            std::thread::sleep(Duration::from_millis(50));
            let now = self.shown()?;
            // A copy of a segment may still be under way though all is acknowledged.
            if now.contains(" unacked:") || counts(&now) != counts(&text) {
                since = Instant::now();
            }
            text = now;
        }
        self.hold.store(false, Ordering::Relaxed);
        let lost = lost(&text)?;
        if lost > 0 {
            println!("TCP has lost {lost} segments so far: {text}");
        }
        Ok(lost)
    }

    /// The connection, as `ss` shows it.
    fn shown(&self) -> Result<String> {
        let mut ss = command::command("ss");
        let filter = format!("sport = :{}", self.port);
        ss.args(["-tinH", "state", "established", &filter]);
        let text = netns::run(&self.from, ss)?;
        ensure!(text.contains("bytes_acked:"), "no such connection: {text}");
        Ok(text)
    }

    /// Ends both and says what they came to.
    ///
    /// # Errors
    /// When a stream broke off.
    pub fn stop(self) -> Result<Carried> {
        let all = self.settled()?;
        self.stop.store(true, Ordering::Relaxed);
        let sent = joined(self.sender)?;
        let arrived = joined(self.receiver)?;
        let (written, read) = (joined(self.writer)?, joined(self.reader)?);
        ensure!(written == read, "TCP: {written} bytes sent, {read} arrived");
        let got = |n: &u32| arrived.get(*n as usize).copied().unwrap_or_default();
        Ok(Carried {
            sent,
            lost: (0..sent).filter(|n| !got(n)).collect(),
            retransmitted: match self.marked {
                Some(marked) => (marked, all.saturating_sub(marked)),
                None => (all, 0),
            },
            bytes: read,
        })
    }

    /// Ends both; nothing may be lost, and TCP may have lost no more until the mark than
    /// after it, when nothing happened.
    ///
    /// # Errors
    /// What was lost.
    pub fn lost_nothing(self) -> Result<Carried> {
        ensure!(self.marked.is_some(), "there is nothing to compare with");
        let carried = self.stop()?;
        let (during, baseline) = carried.retransmitted;
        ensure!(
            carried.lost.is_empty(),
            "{} of {} datagrams lost: {:?}",
            carried.lost.len(),
            carried.sent,
            carried.lost.iter().take(20).collect::<Vec<_>>()
        );
        ensure!(
            during <= baseline,
            "TCP lost {during} segments, {baseline} in the same time while nothing happened"
        );
        ensure!(
            carried.sent > 1000 && carried.bytes > 100_000,
            "{carried:?}"
        );
        Ok(carried)
    }
}

/// What of the connection's counts tells of losses.
fn counts(text: &str) -> Vec<&str> {
    let count = |word: &&str| word.starts_with("retrans:") || word.starts_with("dsack_dups:");
    text.split_whitespace().filter(count).collect()
}

/// The segments that were lost in what `ss` shows: those that were sent again, less
/// those of which the other side said that it had them already (DSACK). On a busy
/// machine the kernel probes early (RFC 8985).
fn lost(text: &str) -> Result<u64> {
    let count = |after: &str, rest: &str| -> Option<u64> {
        let (_, tail) = rest.split_once(after)?;
        tail.split_whitespace().next()?.parse().ok()
    };
    // `retrans:<under way>/<in all>`, and nothing at all while there were none.
    let Some((_, rest)) = text.split_once(" retrans:") else {
        return Ok(0);
    };
    let again = count("/", rest).with_context(|| format!("ss shows no count: {text}"))?;
    let in_vain = count("dsack_dups:", text).unwrap_or_default();
    Ok(again.saturating_sub(in_vain))
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of a stream panicked")))
}

fn send(socket: &UdpSocket, stop: &AtomicBool) -> Result<u32> {
    let begun = Instant::now();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let mut datagram = [0; 200];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        // A refusal by our own kernel is a loss like any other.
        let _ = socket.send(&datagram);
        number += 1;
        // By the clock, so that a late one does not slow the stream down.
        let due = begun + PACE * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(number)
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Vec<bool>> {
    let mut arrived = Vec::new();
    let mut datagram = [0; 256];
    let mut stopped = None;
    loop {
        match socket.recv(&mut datagram) {
            Ok(length) if length >= 4 => {
                let number: [u8; 4] = datagram[..4].try_into()?;
                let number = u32::from_be_bytes(number) as usize;
                if arrived.len() <= number {
                    arrived.resize(number + 1, false);
                }
                arrived[number] = true;
            }
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).context("the UDP sink"),
        }
        if stop.load(Ordering::Relaxed)
            && stopped.get_or_insert_with(Instant::now).elapsed() > STRAGGLER
        {
            return Ok(arrived);
        }
    }
}

fn write(mut stream: TcpStream, stop: &AtomicBool, hold: &AtomicBool) -> Result<u64> {
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let piece = [7; PIECE];
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        if !hold.load(Ordering::Relaxed) {
            stream.write_all(&piece).context("the TCP stream")?;
            written += PIECE as u64;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.shutdown(Shutdown::Write)?;
    // Held until the other side has all, so that nothing is cut off.
    let _ = stream.read(&mut [0; 1]);
    Ok(written)
}

fn read(mut stream: TcpStream) -> Result<u64> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut buffer = [0; PIECE];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).context("the TCP sink")? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_side_had_already_was_not_lost() {
        assert_eq!(lost("bytes_acked:1 segs_out:9").unwrap(), 0);
        let shown = "bytes_retrans:99 retrans:0/5 dsack_dups:2 rcv_rtt:1";
        assert_eq!(lost(shown).unwrap(), 3);
        assert_eq!(lost("mss:1 retrans:1/5 rcv_rtt:1").unwrap(), 5);
        assert!(lost("mss:1 retrans:nonsense").is_err());
    }
}
