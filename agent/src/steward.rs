//! Owns this node's state: decides its overlay address from each new view, and
//! publishes what the dataplane, the CNI server and the registrar act on.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use viaduct_model::{ClusterView, Node};

use crate::node::{self, Identity};
use crate::run_dir::write_atomically;
use crate::state::{DataplaneReport, LocalNode, NodeState};
use crate::subnet_env;

/// Where the steward publishes.
#[derive(Debug)]
pub struct Outputs {
    /// For the dataplane and the CNI server.
    pub state: watch::Sender<Option<NodeState>>,
    /// For the registrar: the Node record that should stand in the store.
    pub record: watch::Sender<Option<Node>>,
}

/// Runs until the view's publisher is gone.
pub async fn run(
    identity: Identity,
    mut local: LocalNode,
    mut view: watch::Receiver<Option<Arc<ClusterView>>>,
    outputs: Outputs,
) {
    loop {
        let current = view.borrow_and_update().clone();
        if let Some(view) = current {
            let overlay = node::overlay(&view, &identity.name, local.overlay);
            if overlay != local.overlay {
                match overlay {
                    Some(ip) => tracing::info!(overlay = %ip, "the node owns a block"),
                    None => tracing::warn!("the node owns no block any more"),
                }
                local.overlay = overlay;
            }
            let record = node::record(&identity, &local, view.nodes.get(&identity.name));
            outputs.record.send_if_modified(|published| {
                let changed = published.as_ref() != Some(&record);
                *published = Some(record);
                changed
            });
            outputs.state.send_replace(Some(NodeState {
                local: local.clone(),
                view,
            }));
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

/// Writes `subnet.env` once the node can wire pods, and again when it changes.
pub async fn keep_subnet_env(
    path: PathBuf,
    mut state: watch::Receiver<Option<NodeState>>,
    mut report: watch::Receiver<DataplaneReport>,
) {
    let mut written = None;
    loop {
        let can_wire = report.borrow_and_update().can_wire;
        let content = state
            .borrow_and_update()
            .as_ref()
            .and_then(subnet_env::content);
        if can_wire && content.is_some() && content != written {
            match write_atomically(&path, content.as_deref().unwrap_or_default().as_bytes()) {
                Ok(()) => written = content,
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "cannot write subnet.env")
                }
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            changed = report.changed() => if changed.is_err() { return },
        }
    }
}
