//! `--node-cidrs=publish`: each node's first block of each family is written into the pod
//! CIDRs of its Node object, once and for ever: Kubernetes lets nobody change them.
//!
//! What ought to stand there and whether it may be written is decided by pure functions;
//! one task beside the control loop reads and writes. What stands there otherwise is left
//! alone and named on the node's block.

use std::collections::BTreeMap;

use tokio::sync::watch;
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Backoff, Mark, StoreError};
use viaduct_model::{BlockState, Cidr, Family, Kind, NodeName};

use crate::decide::Faults;
use crate::view::View;

/// A node's active blocks, in address order.
pub type Shares = BTreeMap<NodeName, Vec<Cidr>>;

/// What there is to publish: the blocks of every node that has one of each family that it
/// wants. Pod CIDRs are written all at once or not at all.
pub fn shares(view: &View, faults: &Faults) -> Shares {
    let mut shares = Shares::new();
    for (cidr, block) in &view.blocks {
        let wrong = faults.contains_key(&(Kind::Block, cidr.record_name()));
        if block.record.state == BlockState::Active && !wrong {
            let of = shares.entry(block.record.node.clone()).or_default();
            of.push(*cidr);
        }
    }
    shares.retain(|node, owned| {
        view.claims.get(node).is_some_and(|claim| {
            Family::ALL.into_iter().all(|family| {
                claim.record.wants.of(family) == 0 || owned.iter().any(|c| c.family() == family)
            })
        })
    });
    shares
}

/// What to do about a Node's pod CIDRs.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write these: nothing stands there.
    Write(Vec<Cidr>),
    /// All that stands there is the node's.
    Stands,
    /// Something else stands there.
    Conflict(Cidr),
}

fn judge(owned: &[Cidr], standing: &[Cidr]) -> Step {
    if let Some(foreign) = standing.iter().find(|cidr| !owned.contains(cidr)) {
        return Step::Conflict(*foreign);
    }
    if !standing.is_empty() {
        return Step::Stands;
    }
    let first = |family| owned.iter().copied().find(|c| c.family() == family);
    Step::Write(Family::ALL.into_iter().filter_map(first).collect())
}

/// Runs until the sender is gone; publishes conflicts as faults of blocks. `None`: another
/// controller does it.
pub async fn keep(
    store: SharedStore,
    mut wanted: watch::Receiver<Option<Shares>>,
    conflicts: watch::Sender<Faults>,
) {
    let mut backoff = Backoff::default();
    // What was settled, and of which blocks.
    let mut settled: Shares = Shares::new();
    let mut found = Faults::new();
    loop {
        let now = wanted.borrow_and_update().clone().unwrap_or_default();
        settled.retain(|node, _| now.contains_key(node));
        let owned = |cidr: &str| now.values().flatten().any(|c| c.record_name() == cidr);
        found.retain(|(_, name), _| owned(name));
        let mut failure = None;
        for (node, owned) in &now {
            if settled.get(node) == Some(owned) {
                continue;
            }
            match settle(&store, node, owned).await {
                Ok(conflict) => {
                    found.retain(|(_, name), _| owned.iter().all(|c| c.record_name() != *name));
                    found.extend(conflict);
                    settled.insert(node.clone(), owned.clone());
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        conflicts.send_if_modified(|before| {
            let changed = *before != found;
            before.clone_from(&found);
            changed
        });
        let pause = match failure {
            None => {
                backoff.reset();
                None
            }
            Some(error) => {
                tracing::warn!(%error, "pod CIDRs cannot be published yet");
                Some(backoff.next())
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Makes a Node's pod CIDRs those of its blocks if nothing stands there.
async fn settle(
    store: &SharedStore,
    node: &NodeName,
    owned: &[Cidr],
) -> Result<Option<((Kind, String), Mark)>, StoreError> {
    let name = node.as_str();
    let foreign = match judge(owned, &store.node_cidrs(name).await?) {
        Step::Stands => return Ok(None),
        Step::Write(cidrs) => {
            store.publish_node_cidrs(name, &cidrs).await?;
            let cidrs: Vec<String> = cidrs.iter().map(Cidr::to_string).collect();
            tracing::info!(
                node = name,
                cidrs = cidrs.join(","),
                "published the node's pod CIDRs"
            );
            return Ok(None);
        }
        Step::Conflict(foreign) => foreign,
    };
    let text = format!(
        "the Node {name:?} has the pod CIDR {foreign}, which is no block of its own: somebody \
         else allocates pod CIDRs (kube-controller-manager's --allocate-node-cidrs, a cloud); \
         use --node-cidrs=adopt or off"
    );
    tracing::warn!("{text}");
    let mark = Mark {
        reason: "NodeCIDRs".into(),
        text,
    };
    let first = owned
        .first()
        .map(|c| ((Kind::Block, c.record_name()), mark));
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(of: &[&str]) -> Vec<Cidr> {
        of.iter().map(|c| c.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_block_of_each_family_is_written_where_nothing_stands() {
        let owned = cidrs(&["10.0.0.0/26", "10.0.0.64/26", "fd00::/122", "fd00::40/122"]);
        let first = cidrs(&["10.0.0.0/26", "fd00::/122"]);
        assert_eq!(judge(&owned, &[]), Step::Write(first));
    }

    #[test]
    fn what_stands_is_never_fought() {
        let owned = cidrs(&["10.0.0.0/26", "10.0.0.64/26"]);
        // A lower block came later: what was published still is the node's.
        assert_eq!(judge(&owned, &cidrs(&["10.0.0.64/26"])), Step::Stands);
        let foreign = cidrs(&["10.244.1.0/24"]);
        assert_eq!(judge(&owned, &foreign), Step::Conflict(foreign[0]));
    }
}
