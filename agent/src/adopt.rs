//! `--node-cidrs=adopt`: this node's blocks are the pod CIDRs that Kubernetes has given it.
//!
//! The decision is pure: it creates what is missing, or names a conflict and creates
//! nothing. One task carries it out; the records that it writes belong to the Node and go
//! with it. Needs no controller.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use viaduct_datastore::records::encode;
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Backoff, StoreError};
use viaduct_model::{Block, Cidr, ClusterView, NodeName, Tenure};

/// How long a Node may be without pod CIDRs before it is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// For how long an adopted block is trusted, in milliseconds: 30 days. There may be no
/// controller that could grant it anew, and none takes it: it is the Node's while that stands.
const TRUST_MS: u64 = 30 * 24 * 3600 * 1000;

/// What follows from a Node's pod CIDRs.
#[derive(Debug, PartialEq)]
pub enum Adoption {
    /// These blocks are to be created; none: all are there.
    Create(Vec<Block>),
    /// Nothing is created, and why.
    Conflict(String),
}

/// Decides what is to be done about the pod CIDRs of `node`.
pub fn decide(cidrs: &[Cidr], view: &ClusterView, node: &NodeName, tenure: &Tenure) -> Adoption {
    let name = node.as_str();
    if cidrs.is_empty() {
        return Adoption::Conflict(format!(
            "the Node {name:?} has no spec.podCIDRs to adopt: kube-controller-manager \
             (--allocate-node-cidrs) or the cloud gives them, or use --node-cidrs=off"
        ));
    }
    if let Some(other) = view.blocks_of(node).find(|b| !cidrs.contains(&b.cidr)) {
        return Adoption::Conflict(format!(
            "node {name:?} owns block {}, which is none of its Node's pod CIDRs: a controller \
             without --node-cidrs=adopt gave it; drain the node and delete the block",
            other.cidr
        ));
    }
    let mut create = Vec::new();
    for cidr in cidrs {
        if let Some(other) = view
            .blocks
            .values()
            .find(|b| b.cidr.overlaps(cidr) && (b.cidr != *cidr || b.node != *node))
        {
            return Adoption::Conflict(format!(
                "the Node's pod CIDR {cidr} overlaps block {} of node {:?}",
                other.cidr,
                other.node.as_str()
            ));
        }
        let Some((pool, _)) = view.pools.iter().find(|(_, pool)| pool.cidr.covers(cidr)) else {
            return Adoption::Conflict(format!(
                "no pool covers the Node's pod CIDR {cidr}: create one with the cluster's pod CIDR"
            ));
        };
        if !view.blocks.contains_key(cidr) {
            let generation = tenure.next_generation(cidr);
            let block = Block::new(*cidr, pool.clone(), node.clone(), generation);
            create.push(Block {
                trust_ms: Some(TRUST_MS),
                ..block
            });
        }
    }
    Adoption::Create(create)
}

/// Adopts until the view is gone; `conflict` has why not, if so.
pub async fn run(
    store: SharedStore,
    node: NodeName,
    mut view: watch::Receiver<Option<Arc<ClusterView>>>,
    tenure: watch::Receiver<Arc<Tenure>>,
    conflict: watch::Sender<Option<String>>,
) {
    // Once given they never change while the Node stands.
    let mut cidrs: Vec<Cidr> = Vec::new();
    let mut backoff = Backoff::default();
    loop {
        let seen = view.borrow_and_update().clone();
        let outcome = match &seen {
            Some(seen) => {
                let tenure = tenure.borrow().clone();
                once(&store, &node, (seen, &tenure), &mut cidrs).await
            }
            None => Ok(None),
        };
        let pause = match outcome {
            Ok(told) => {
                backoff.reset();
                let again = told.is_some();
                conflict.send_if_modified(|before| {
                    if *before == told {
                        return false;
                    }
                    if let Some(sentence) = &told {
                        tracing::warn!("{sentence}");
                    }
                    *before = told;
                    true
                });
                again.then_some(AGAIN)
            }
            Err(error) => {
                tracing::warn!(%error, "this node's pod CIDRs cannot be adopted yet");
                Some(backoff.next())
            }
        };
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

async fn once(
    store: &SharedStore,
    node: &NodeName,
    (view, tenure): (&ClusterView, &Tenure),
    cidrs: &mut Vec<Cidr>,
) -> Result<Option<String>, StoreError> {
    let name = node.as_str();
    // A Node that was made anew may have others; its records went with it.
    if cidrs.is_empty() || view.blocks_of(node).next().is_none() {
        *cidrs = store.node_cidrs(name).await?;
    }
    let create = match decide(cidrs, view, node, tenure) {
        Adoption::Conflict(sentence) => return Ok(Some(sentence)),
        Adoption::Create(create) => create,
    };
    for block in create {
        let record = block.cidr.record_name();
        let value = match encode(&record, &block) {
            Ok(value) => value,
            Err(invalid) => return Ok(Some(invalid.to_string())),
        };
        match store.adopt_block(&record, &value, name).await {
            Ok(_) => tracing::info!(block = %block.cidr, "adopted the Node's pod CIDR"),
            // The view will tell whose it is.
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_model::Pool;

    fn view(pools: &[&str], blocks: &[(&str, &str)]) -> ClusterView {
        let mut view = ClusterView::default();
        for (n, cidr) in pools.iter().enumerate() {
            let pool = Pool::new(cidr.parse().unwrap(), Some(26));
            view.pools.insert(format!("p{n}").parse().unwrap(), pool);
        }
        for (cidr, node) in blocks {
            let cidr: Cidr = cidr.parse().unwrap();
            let block = Block::new(cidr, "p0".parse().unwrap(), node.parse().unwrap(), 1);
            view.blocks.insert(cidr, block.into());
        }
        view
    }

    fn decided(cidrs: &[&str], view: &ClusterView) -> Result<Vec<String>, String> {
        let cidrs: Vec<Cidr> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        let node: NodeName = "n".parse().unwrap();
        match decide(&cidrs, view, &node, &Tenure::new(node.clone())) {
            Adoption::Create(blocks) => Ok(blocks.iter().map(|b| b.cidr.to_string()).collect()),
            Adoption::Conflict(sentence) => Err(sentence),
        }
    }

    #[test]
    fn what_the_node_was_given_is_created_once_and_in_both_families() {
        let pools = ["10.244.0.0/16", "fd00:244::/48"];
        let given = ["10.244.1.0/24", "fd00:244:0:1::/112"];
        let all = Ok(given.map(str::to_owned).to_vec());
        assert_eq!(decided(&given, &view(&pools, &[])), all);
        let there = view(&pools, &[("10.244.1.0/24", "n"), ("10.244.2.0/24", "m")]);
        let rest = Ok(vec!["fd00:244:0:1::/112".to_owned()]);
        assert_eq!(decided(&given, &there), rest);
    }

    #[test]
    fn a_conflict_creates_nothing_and_names_what_it_is_with() {
        let pools = ["10.244.0.0/16"];
        let given = ["10.244.1.0/24"];
        for (cidrs, view, says) in [
            (&[][..], view(&pools, &[]), "no spec.podCIDRs"),
            (&given[..], view(&["10.0.0.0/24"], &[]), "no pool covers"),
            (
                &given[..],
                view(&pools, &[("10.244.1.64/26", "m")]),
                "overlaps block 10.244.1.64/26 of node \"m\"",
            ),
            (
                &given[..],
                view(&pools, &[("10.244.1.0/24", "m")]),
                "of node \"m\"",
            ),
            (
                &given[..],
                view(&pools, &[("10.244.0.0/26", "n")]),
                "owns block 10.244.0.0/26",
            ),
        ] {
            let told = decided(cidrs, &view).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
    }
}
