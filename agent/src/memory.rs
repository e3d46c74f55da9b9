//! What an agent remembers of its blocks over a restart, so that pods start although
//! the datastore is away.
//!
//! One file in the run directory, on a tmpfs like the ledger, so that it goes with a
//! reboot. Written by [`keep`] while the node's claim is held, that is, while the
//! datastore itself confirms that this node lives; read once at start. It is believed
//! for [`LIMIT`] after the last such proof (docs/adr/0082), and only as long as the
//! datastore has not been read. It serves ADD alone: nothing is put into the kernel
//! or swept by it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use viaduct_datastore::liveness::HoldState;
use viaduct_model::{BlockState, Cidr, NodeName};

use crate::clock::now_ms;
use crate::run_dir::write_atomically;
use crate::state::NodeState;

/// The file inside the run directory.
pub const FILE: &str = "blocks.json";

/// How long after the last proof the memory is believed: less than the five minutes
/// for which a controller keeps a block of a deleted node from others.
pub const LIMIT: Duration = Duration::from_secs(240);

/// How often the time of the last proof is written down while nothing else changes.
const REFRESH: Duration = Duration::from_secs(15);

/// A node's blocks and what an ADD needs to know beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// The node that owned them.
    pub node: String,
    /// Blocks that addresses are handed out from.
    pub serving: BTreeSet<Cidr>,
    /// Blocks whose addresses in use stay and that hand out none.
    pub draining: BTreeSet<Cidr>,
    /// What is never handed out: what pools reserve, and the node's own address.
    pub reserved: BTreeSet<Cidr>,
    /// The MTU of pods in bytes.
    pub mtu: u32,
    /// When the datastore last confirmed that the node lives, in milliseconds of the
    /// boot-time clock.
    pub proven_ms: u64,
}

impl Memory {
    /// What is to be remembered of `state`; `None` while there is nothing.
    pub fn of(state: &NodeState, proven_ms: u64) -> Option<Self> {
        let local = &state.local;
        let overlay = Cidr::host(IpAddr::V4(local.overlay?));
        let blocks = |serving: bool| {
            state
                .view
                .blocks_of(&local.name)
                .filter(|block| (block.state == BlockState::Active) == serving)
                .map(|block| block.cidr)
                .collect()
        };
        let pools = state.view.pools.values();
        let reserved = pools.flat_map(|pool| pool.reserved.iter().copied());
        Some(Self {
            node: local.name.as_str().to_owned(),
            serving: blocks(true),
            draining: blocks(false),
            reserved: reserved.chain([overlay]).collect(),
            mtu: local.mtu,
            proven_ms,
        })
    }

    /// Reads what the last agent of this node left; `None` where there is nothing that
    /// could be believed.
    pub fn load(run_dir: &Path, node: &NodeName) -> Option<Self> {
        let path = run_dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %path.display(), "what was remembered cannot be read");
                }
                return None;
            }
        };
        let memory: Self = serde_json::from_slice(&text)
            .inspect_err(|error| {
                tracing::warn!(%error, path = %path.display(), "what was remembered cannot be read");
            })
            .ok()?;
        (memory.node == node.as_str()).then_some(memory)
    }

    /// Whether it may still be believed at `now_ms` of the boot-time clock.
    pub fn holds(&self, now_ms: u64) -> bool {
        // A proof in the future is of another boot's clock.
        now_ms
            .checked_sub(self.proven_ms)
            .is_some_and(|age| u128::from(age) < LIMIT.as_millis())
    }

    /// Whether it may still be believed now.
    pub fn holds_now(&self) -> bool {
        self.holds(now_ms())
    }
}

/// Keeps the file current while the claim is held. `lag` is how old the proof behind
/// "held" may be.
pub async fn keep(
    run_dir: PathBuf,
    mut states: watch::Receiver<Option<NodeState>>,
    mut hold: watch::Receiver<HoldState>,
    lag: Duration,
) {
    let path = run_dir.join(FILE);
    let lag = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
    loop {
        let held = matches!(&*hold.borrow_and_update(), HoldState::Held);
        let memory = states
            .borrow_and_update()
            .as_ref()
            .and_then(|state| Memory::of(state, now_ms().saturating_sub(lag)));
        if held && let Some(memory) = &memory {
            let written = serde_json::to_vec_pretty(memory)
                .map_err(std::io::Error::other)
                .and_then(|text| write_atomically(&path, &text));
            if let Err(error) = written {
                tracing::warn!(%error, path = %path.display(), "this node's blocks cannot be remembered");
            }
        }
        let alive = tokio::select! {
            changed = states.changed() => changed.is_ok(),
            changed = hold.changed() => changed.is_ok(),
            () = tokio::time::sleep(REFRESH), if held => true,
        };
        if !alive {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::Cluster;

    fn memory() -> Memory {
        let mut cluster = Cluster::new();
        cluster.block("10.64.9.0/26", "a").state = BlockState::Releasing;
        Memory::of(&cluster.state(), 1000).unwrap()
    }

    #[test]
    fn only_this_nodes_blocks_are_remembered_and_what_an_add_needs() {
        let memory = memory();
        let texts = |cidrs: &BTreeSet<Cidr>| -> Vec<String> {
            cidrs.iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&memory.serving), ["10.64.0.0/26"]);
        assert_eq!(texts(&memory.draining), ["10.64.9.0/26"]);
        assert_eq!(texts(&memory.reserved), ["10.64.0.0/32"]);
        let mut without = Cluster::new();
        without.local.overlay = None;
        assert_eq!(Memory::of(&without.state(), 1000), None);
    }

    #[test]
    fn it_is_believed_for_four_minutes_and_never_over_a_reboot() {
        let memory = memory();
        assert!(memory.holds(1000) && memory.holds(1000 + 239_999));
        assert!(!memory.holds(1000 + 240_000));
        assert!(!memory.holds(999), "the clock of another boot");
    }

    #[test]
    fn another_nodes_or_a_damaged_file_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<NodeName>().unwrap();
        assert_eq!(Memory::load(dir.path(), &name("a")), None);
        let text = serde_json::to_vec(&memory()).unwrap();
        std::fs::write(dir.path().join(FILE), &text).unwrap();
        assert_eq!(Memory::load(dir.path(), &name("a")), Some(memory()));
        assert_eq!(Memory::load(dir.path(), &name("b")), None);
        std::fs::write(dir.path().join(FILE), &text[..20]).unwrap();
        assert_eq!(Memory::load(dir.path(), &name("a")), None);
    }
}
