//! TCP streams between two namespaces, for turns that are shorter than iperf3 can
//! measure: many short turns tell two paths apart better than a few long ones.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use viaduct_lab::netns;

/// Before bytes count: by then TCP has found its pace.
const WARM_UP: Duration = Duration::from_millis(100);

/// How much is written and read at once, in bytes; as iperf3 does.
const PIECE: usize = 128 << 10;

/// The buffers of each end, in bytes, or what the kernel allows of it. Left to itself TCP
/// sizes them anew in each turn, and how far it gets decides more than the path does.
const BUFFER: usize = 4 << 20;

/// How long a write or a read may be stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Keeps this thread on a CPU where there are two or more, so that all sides of a
/// comparison are dealt the same.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("staying on CPU {cpu}"))
}

/// What `count` streams bring over together in `time`, in Gbit/s as the receivers
/// count it. All senders are on one CPU and all receivers on another.
///
/// # Errors
/// When a connection cannot be made or breaks.
pub(crate) fn gigabits(
    from: &Path,
    to: &Path,
    ip: Ipv4Addr,
    count: usize,
    time: Duration,
) -> Result<f64> {
    let pairs = connect(from, to, ip, count)?;
    let (stop, arrived) = (AtomicBool::new(false), AtomicU64::new(0));
    let rate = std::thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .into_iter()
            .flat_map(|(sender, receiver)| {
                [
                    scope.spawn(|| send(sender, &stop)),
                    scope.spawn(|| receive(receiver, &arrived)),
                ]
            })
            .collect();
        std::thread::sleep(WARM_UP);
        let (begun, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
        std::thread::sleep(time);
        let (took, after) = (begun.elapsed(), arrived.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a stream's thread panicked")))
        })?;
        anyhow::Ok((after - before) as f64 * 8.0 / took.as_secs_f64() / 1e9)
    })?;
    ensure!(rate > 0.0, "the streams to {ip} carried nothing");
    Ok(rate)
}

fn connect(
    from: &Path,
    to: &Path,
    ip: Ipv4Addr,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>> {
    let listener = netns::within(to, || Ok(TcpListener::bind(SocketAddr::new(ip.into(), 0))?))?;
    let address = listener.local_addr()?;
    netns::within(from, || {
        (0..count)
            .map(|_| {
                let sender = TcpStream::connect_timeout(&address, STUCK)
                    .with_context(|| format!("connecting to {address}"))?;
                let (receiver, _) = listener.accept()?;
                setsockopt(&sender, sockopt::SndBuf, &BUFFER)?;
                setsockopt(&receiver, sockopt::RcvBuf, &BUFFER)?;
                sender.set_write_timeout(Some(STUCK))?;
                receiver.set_read_timeout(Some(STUCK))?;
                Ok((sender, receiver))
            })
            .collect()
    })
}

fn send(mut socket: TcpStream, stop: &AtomicBool) -> Result<()> {
    pin(0)?;
    let piece = vec![0; PIECE];
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(&piece).context("a stream's sender")?;
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(())
}

fn receive(mut socket: TcpStream, arrived: &AtomicU64) -> Result<()> {
    pin(1)?;
    let mut piece = vec![0; PIECE];
    loop {
        match socket.read(&mut piece).context("a stream's receiver")? {
            0 => return Ok(()),
            length => arrived.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}
