//! Who notes when what happened in the store and in kernels, without asking them
//! again and again: both tell by themselves.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use viaduct_datastore::{StoreError, StoreOptions, Update, follow, open};
use viaduct_lab::{Node, netns};
use viaduct_model::Kind;

use super::{Timeline, since};

/// Something seen, and when.
type Seen = (String, Instant);

/// Notes when the records of a node are written.
#[derive(Debug)]
pub(super) struct StoreWitness {
    stop: oneshot::Sender<()>,
    seen: mpsc::Receiver<Seen>,
}

impl StoreWitness {
    /// Begins to watch; returns when nothing can be missed any more.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) fn start(store: StoreOptions, node: &str) -> Result<Self> {
        let (tell, seen) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let node = node.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    outcome = watch(store, &node, &ready, &tell) => drop(outcome),
                    _ = stopped => {}
                }
            });
        });
        is_ready
            .recv_timeout(Duration::from_secs(10))
            .context("the store cannot be watched")?;
        Ok(Self { stop, seen })
    }

    /// Stops watching and hands over what was seen.
    pub(super) fn stop(self, start: Instant) -> Timeline {
        // A watcher that has ended already needs no stopping.
        let _ = self.stop.send(());
        told(self.seen.iter(), start)
    }
}

async fn watch(
    store: StoreOptions,
    node: &str,
    ready: &mpsc::Sender<()>,
    tell: &mpsc::Sender<Seen>,
) -> Result<(), StoreError> {
    let store = open(&store).await?;
    let mut claims = follow(store.clone(), Kind::Claim);
    let mut blocks = follow(store.clone(), Kind::Block);
    let mut nodes = follow(store, Kind::Node);
    for all in [&mut claims, &mut blocks, &mut nodes] {
        all.recv().await;
    }
    let _ = ready.send(());
    loop {
        let (kind, update) = tokio::select! {
            update = claims.recv() => (Kind::Claim, update),
            update = blocks.recv() => (Kind::Block, update),
            update = nodes.recv() => (Kind::Node, update),
        };
        let now = Instant::now();
        if let Some(Update::Put(entry)) = update {
            let owned = format!("\"node\":\"{node}\"");
            if entry.name == node || String::from_utf8_lossy(&entry.value).contains(&owned) {
                let _ = tell.send((format!("store: {kind} written"), now));
            }
        }
    }
}

/// Notes when objects on the tunnel appear in a node's kernel, by `ip monitor`.
#[derive(Debug)]
pub(super) struct KernelWitness {
    child: Child,
    reader: JoinHandle<Vec<Seen>>,
}

impl KernelWitness {
    /// Begins to listen.
    ///
    /// # Errors
    /// When `ip monitor` cannot be started.
    pub(super) fn start(node: &Node, shown: &str) -> Result<Self> {
        let mut command = Command::new("ip");
        command
            .args(["monitor", "link", "route", "neigh"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = netns::within(node.netns(), move || command.spawn().context("ip monitor"))?;
        let stdout = child.stdout.take().context("the output of ip monitor")?;
        let shown = shown.to_owned();
        let reader = std::thread::spawn(move || {
            let mut seen: Vec<Seen> = Vec::new();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(what) = object(&line) {
                    seen.push((format!("kernel of {shown}: {what}"), Instant::now()));
                }
            }
            seen
        });
        // It says nothing when it listens; it does by then.
        std::thread::sleep(Duration::from_millis(50));
        Ok(Self { child, reader })
    }

    /// Stops listening and hands over what was seen.
    ///
    /// # Errors
    /// When it has not listened at all.
    pub(super) fn stop(mut self, start: Instant) -> Result<Timeline> {
        self.child.kill()?;
        self.child.wait()?;
        let seen = self.reader.join().ok().context("a reader panicked")?;
        Ok(told(seen.into_iter(), start))
    }
}

/// What a line of `ip monitor` is about, if it is the tunnel's.
fn object(line: &str) -> Option<&'static str> {
    if line.starts_with("Deleted") || !line.contains("via.vx4") {
        return None;
    }
    if line.contains(" via ") {
        Some("route to a peer")
    } else if line.contains("lladdr") && line.contains("PERMANENT") {
        Some("neighbour or forwarding entry")
    } else if line.contains("mtu") {
        Some("tunnel")
    } else {
        None
    }
}

/// Of everything that was seen more than once, the first and the last time.
fn told(seen: impl Iterator<Item = Seen>, start: Instant) -> Timeline {
    let mut timeline: Vec<(String, f64, Option<f64>)> = Vec::new();
    for (what, at) in seen {
        let at = since(start, at);
        match timeline.iter_mut().find(|(w, ..)| *w == what) {
            Some((.., last)) => *last = Some(at),
            None => timeline.push((what, at, None)),
        }
    }
    timeline
        .into_iter()
        .flat_map(|(what, first, last)| {
            let last = last.map(|at| (format!("{what}, last"), at));
            [(what, first)].into_iter().chain(last)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_tunnel_are_told_apart() {
        for (line, what) in [
            (
                "10.64.0.64/26 via 10.64.0.64 dev via.vx4 proto 87 onlink ",
                Some("route to a peer"),
            ),
            (
                "10.64.0.64 dev via.vx4 lladdr 02:00:00:00:00:01 PERMANENT proto 87",
                Some("neighbour or forwarding entry"),
            ),
            (
                "9: via.vx4: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue",
                Some("tunnel"),
            ),
            ("Deleted 10.64.0.64/26 via 10.64.0.64 dev via.vx4", None),
            (
                "172.29.0.1 dev eth0 lladdr 02:00:00:00:00:01 REACHABLE",
                None,
            ),
        ] {
            assert_eq!(object(line), what, "{line}");
        }
    }

    #[test]
    fn first_and_last_are_told() {
        let start = Instant::now();
        let seen = [5, 7, 9].map(|ms| ("x".to_owned(), start + Duration::from_millis(ms)));
        let timeline = told(seen.into_iter(), start);
        assert_eq!(
            timeline,
            [("x".to_owned(), 5.0), ("x, last".to_owned(), 9.0)]
        );
    }
}
