//! `viaductctl nodes delete`.

use anyhow::{Context, Result, ensure};
use viaduct_datastore::{Records, StoreError};
use viaduct_model::{Kind, Node, NodeName, Record};

use crate::snapshot::Snapshot;

/// Deletes the record of a node for which no agent runs; the controller does the rest.
pub(crate) async fn run(records: &Records, name: &NodeName) -> Result<String> {
    let (store, node) = (records.store(), name.as_str());
    ensure!(
        store.get(Kind::Claim, node).await?.is_none(),
        "node {node:?} cannot be deleted: an agent runs for it, or did until some seconds ago; \
         stop that agent first"
    );
    // Also one that cannot be read.
    let entry = store
        .get(Node::KIND, node)
        .await?
        .with_context(|| format!("there is no node {node:?}"))?;
    match store.delete(Node::KIND, node, &entry.version).await {
        Ok(()) => {}
        Err(StoreError::Conflict { .. }) => anyhow::bail!(
            "node {node:?} cannot be deleted: its record has just changed, so an agent runs for it"
        ),
        Err(error) => return Err(error.into()),
    }
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
