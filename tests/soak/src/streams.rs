//! Numbered datagrams between the pods that stay, a hundred a second each way that there
//! is: within each node, and from each node to each other.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use viaduct_lab::{Pod, netns};

use crate::losses::Loss;

/// Between two datagrams of one way.
const PACE: Duration = Duration::from_millis(10);

/// How long a datagram may be under way, or wait for this program to read it.
const STRAGGLER: Duration = Duration::from_secs(2);

/// What may wait for the receiver, in bytes.
const BUFFER: usize = 4 << 20;

/// The streams, running.
#[derive(Debug)]
pub(crate) struct Streams {
    /// The nodes that each way leads from and to.
    ways: Vec<(usize, usize)>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    begun: Instant,
    /// Datagrams of each way that have been looked at.
    judged: usize,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// When the datagrams of each number were sent, since the beginning.
    sent: Mutex<Vec<Duration>>,
    /// By way and number.
    arrived: Mutex<Vec<Vec<bool>>>,
}

/// One way, from a socket in one pod to a socket in another.
struct Way {
    source: UdpSocket,
    sink: UdpSocket,
    target: SocketAddr,
}

impl Streams {
    /// Begins; of each pod it is said on which node it is.
    ///
    /// # Errors
    /// When a socket cannot be had.
    pub(crate) fn start(pods: &[(usize, Pod)]) -> Result<Self> {
        let mut ways = Vec::new();
        let mut sockets = Vec::new();
        for (from, to) in pairs(&pods.iter().map(|(node, _)| *node).collect::<Vec<_>>()) {
            let ((from_node, from), (to_node, to)) = (&pods[from], &pods[to]);
            let way = way(from, to).with_context(|| format!("{} -> {}", from.name, to.name))?;
            ways.push((*from_node, *to_node));
            sockets.push(way);
        }
        let shared = Arc::new(Shared::default());
        locked(&shared.arrived).resize(ways.len(), Vec::new());
        let begun = Instant::now();
        let (sinks, sources): (Vec<_>, Vec<_>) = sockets
            .into_iter()
            .map(|way| (way.sink, (way.source, way.target)))
            .unzip();
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || receive(&sinks, &receiving)),
            std::thread::spawn(move || send(&sources, &sending, begun)),
        ];
        Ok(Self {
            ways,
            shared,
            threads,
            begun,
            judged: 0,
        })
    }

    /// The time by which losses are told, now.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// How many datagrams were sent.
    pub(crate) fn sent(&self) -> usize {
        locked(&self.shared.sent).len() * self.ways.len()
    }

    /// What was lost since this was last asked, but for what may still be under way.
    pub(crate) fn losses(&mut self) -> Vec<Loss> {
        let due = self.now().saturating_sub(STRAGGLER);
        self.lost_until(due)
    }

    fn lost_until(&mut self, due: Duration) -> Vec<Loss> {
        let sent = locked(&self.shared.sent);
        let arrived = locked(&self.shared.arrived);
        let end = sent.partition_point(|at| *at <= due);
        let mut lost = Vec::new();
        for (number, at) in sent.iter().enumerate().take(end).skip(self.judged) {
            for ((from, to), got) in self.ways.iter().zip(&*arrived) {
                if !got.get(number).copied().unwrap_or_default() {
                    lost.push(Loss {
                        from: *from,
                        to: *to,
                        at: *at,
                    });
                }
            }
        }
        self.judged = self.judged.max(end);
        lost
    }

    /// Ends, and says what was lost since that was last asked.
    ///
    /// # Errors
    /// When a thread panicked.
    pub(crate) fn stop(&mut self) -> Result<Vec<Loss>> {
        let last = self.now();
        std::thread::sleep(STRAGGLER);
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            joined.map_err(|_| anyhow::anyhow!("a thread of the streams panicked"))?;
        }
        Ok(self.lost_until(last))
    }
}

/// Which pods send to which: within each node, and from each node to each other. `nodes`
/// says where each pod is.
fn pairs(nodes: &[usize]) -> Vec<(usize, usize)> {
    let mut taken = Vec::new();
    let mut pairs = Vec::new();
    for from in 0..nodes.len() {
        // Backwards, so that a node's second pod has its part.
        for to in (0..nodes.len()).rev().filter(|to| *to != from) {
            let way = (nodes[from], nodes[to]);
            if !taken.contains(&way) {
                taken.push(way);
                pairs.push((from, to));
            }
        }
    }
    pairs
}

fn way(from: &Pod, to: &Pod) -> Result<Way> {
    let bound = |pod: &Pod| netns::within(&pod.netns, || Ok(UdpSocket::bind((pod.ip, 0))?));
    let (source, sink) = (bound(from)?, bound(to)?);
    // As much as we are allowed: what a full buffer drops was carried all the same.
    let _ = setsockopt(&sink, sockopt::RcvBuf, &BUFFER);
    let _ = setsockopt(&sink, sockopt::RcvBufForce, &BUFFER);
    source.set_nonblocking(true)?;
    sink.set_nonblocking(true)?;
    let target = sink.local_addr()?;
    Ok(Way {
        source,
        sink,
        target,
    })
}

fn send(sources: &[(UdpSocket, SocketAddr)], shared: &Shared, begun: Instant) {
    let mut number = 0u32;
    while !shared.stop.load(Ordering::Relaxed) {
        locked(&shared.sent).push(begun.elapsed());
        let mut datagram = [0; 100];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        for (source, target) in sources {
            // A refusal by our own kernel is a loss like any other.
            let _ = source.send_to(&datagram, target);
        }
        number += 1;
        // By the clock, so that a late one does not slow the streams down.
        let due = begun + PACE * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(sinks: &[UdpSocket], shared: &Shared) {
    let timeout = PollTimeout::from(50u8);
    while !shared.stop.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> = sinks
            .iter()
            .map(|sink| PollFd::new(sink.as_fd(), PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut fds, timeout);
        let mut arrived = locked(&shared.arrived);
        for (sink, arrived) in sinks.iter().zip(arrived.iter_mut()) {
            drain(sink, arrived);
        }
    }
}

fn drain(sink: &UdpSocket, arrived: &mut Vec<bool>) {
    let mut datagram = [0; 128];
    loop {
        match sink.recv(&mut datagram) {
            Ok(length) if length >= 4 => {
                let number = datagram[..4].try_into().map_or(0, u32::from_be_bytes) as usize;
                if arrived.len() <= number {
                    arrived.resize(number + 1, false);
                }
                arrived[number] = true;
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Nothing more, or nothing that could be read: a loss like any other.
            Err(_) => return,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_way_within_each_node_and_from_each_to_each_other() {
        let nodes = [0, 0, 1, 1, 2, 2];
        let mut ways: Vec<(usize, usize)> = pairs(&nodes)
            .into_iter()
            .map(|(from, to)| (nodes[from], nodes[to]))
            .collect();
        ways.sort_unstable();
        let all: Vec<(usize, usize)> = (0..3).flat_map(|a| (0..3).map(move |b| (a, b))).collect();
        assert_eq!(ways, all);
        assert!(pairs(&nodes).iter().all(|(from, to)| from != to));
    }

    #[test]
    fn a_number_that_did_not_arrive_is_lost_once_and_not_before_its_time() {
        let at = Duration::from_millis;
        let shared = Shared {
            stop: AtomicBool::new(false),
            sent: Mutex::new(vec![at(0), at(10), at(20)]),
            arrived: Mutex::new(vec![vec![true, false, true], vec![true]]),
        };
        let mut streams = Streams {
            ways: vec![(0, 1), (1, 0)],
            shared: Arc::new(shared),
            threads: Vec::new(),
            begun: Instant::now(),
            judged: 0,
        };
        assert_eq!(streams.sent(), 6);
        let lost = streams.lost_until(at(10));
        let told: Vec<_> = lost.iter().map(|l| (l.from, l.to, l.at)).collect();
        assert_eq!(told, [(0, 1, at(10)), (1, 0, at(10))]);
        assert_eq!(streams.lost_until(at(20)).len(), 1);
        assert!(streams.lost_until(at(20)).is_empty());
    }
}
