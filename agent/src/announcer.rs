//! Tells the cluster itself, where it knows of nodes, that this node's pods have a
//! network: once the kernel is verified, and again when the node was made anew.
//!
//! It never tells the contrary: an agent that restarts leaves a network that works.

use std::sync::Arc;

use tokio::sync::watch;
use viaduct_datastore::Backoff;
use viaduct_datastore::store::SharedStore;
use viaduct_model::{ClusterView, NodeName};

use crate::state::DataplaneReport;

/// Runs until the dataplane or the view is gone.
pub async fn run(
    store: SharedStore,
    name: NodeName,
    mut reports: watch::Receiver<DataplaneReport>,
    mut view: watch::Receiver<Option<Arc<ClusterView>>>,
) {
    loop {
        let registered =
            |v: &Option<Arc<ClusterView>>| v.as_ref().is_some_and(|v| v.nodes.contains_key(&name));
        if view.wait_for(registered).await.is_err()
            || reports
                .wait_for(|r| r.verified && r.can_wire)
                .await
                .is_err()
        {
            return;
        }
        let mut backoff = Backoff::default();
        while let Err(error) = store.announce_network(name.as_str()).await {
            tracing::warn!(%error, "the cluster cannot be told that pods here have a network");
            tokio::time::sleep(backoff.next()).await;
        }
        // Its record goes with the Node, and is written again with the next one.
        if view.wait_for(|v| !registered(v)).await.is_err() {
            return;
        }
    }
}
