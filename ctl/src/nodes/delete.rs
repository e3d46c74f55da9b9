//! `viaductctl nodes delete`.

use anyhow::{Context, Result, bail};
use viaduct_datastore::store::Store;
use viaduct_datastore::{Records, StoreError, Version};
use viaduct_model::{Kind, Node, NodeName, Record};

use crate::snapshot::Snapshot;

/// Deletes the record of a node for which no agent runs; the controller does the rest.
pub(crate) async fn run(records: &Records, name: &NodeName) -> Result<String> {
    let (store, node) = (records.store(), name.as_str());
    let stands = store.node_stands(node).await?;
    let claim = store.get(Kind::Claim, node).await?;
    if let Some(why) = refusal(node, stands, claim.is_some()) {
        bail!(why);
    }
    // Also one that cannot be read.
    let entry = store
        .get(Node::KIND, node)
        .await?
        .with_context(|| format!("there is no node {node:?}"))?;
    // A claim that nothing but its Node kept, left behind by that.
    if let Some(claim) = claim {
        delete(store.as_ref(), Kind::Claim, node, &claim.version).await?;
    }
    delete(store.as_ref(), Node::KIND, node, &entry.version).await?;
    let snapshot = Snapshot::read(records).await?;
    let blocks: Vec<String> = snapshot
        .blocks_of(node)
        .map(|block| block.cidr.to_string())
        .collect();
    Ok(match blocks.as_slice() {
        [] => format!("node {node} deleted; it owned no block\n"),
        blocks => format!(
            "node {node} deleted; its blocks {} are free when the controller's --quarantine is over\n",
            blocks.join(", ")
        ),
    })
}

/// Why the node may not be deleted: `stands` is what the cluster itself says of it, where
/// it knows of nodes; elsewhere a claim is there as long as an agent runs.
fn refusal(node: &str, stands: Option<bool>, has_claim: bool) -> Option<String> {
    match stands {
        Some(true) => Some(format!(
            "node {node:?} cannot be deleted: the Kubernetes Node {node:?} exists; delete that \
             (kubectl delete node {node}), and its records and blocks go with it"
        )),
        Some(false) => None,
        None => has_claim.then(|| {
            format!(
                "node {node:?} cannot be deleted: an agent runs for it, or did until some seconds \
                 ago; stop that agent first"
            )
        }),
    }
}

async fn delete(store: &dyn Store, kind: Kind, node: &str, version: &Version) -> Result<()> {
    match store.delete(kind, node, version).await {
        Err(StoreError::Conflict { .. }) => bail!(
            "node {node:?} cannot be deleted: its {kind} record has just changed, so an agent runs \
             for it"
        ),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_cluster_knows_of_nodes_its_word_counts_and_no_claim() {
        let why = refusal("n1", Some(true), false).unwrap();
        assert!(why.contains("kubectl delete node n1"), "{why}");
        assert_eq!(refusal("n1", Some(false), true), None);
    }

    #[test]
    fn elsewhere_a_claim_says_that_an_agent_runs() {
        let why = refusal("n1", None, true).unwrap();
        assert!(why.contains("stop that agent"), "{why}");
        assert_eq!(refusal("n1", None, false), None);
    }
}
