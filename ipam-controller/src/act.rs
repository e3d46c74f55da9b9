//! Carrying out actions, one at a time, each a single write that the store checks.
//!
//! Called by the control loop, which stops at the first action that does not
//! succeed. Every outcome is taken into the view at once; an outcome that shows
//! our picture to be old is followed by reading how the record really stands.

use std::time::Duration;

use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Entry, StoreError, Version, records};
use viaduct_model::{Block, Claim, Kind, NodeName, Record};

use crate::decide::{Action, Guard};
use crate::view::View;

/// Why the actions behind this one are not carried out.
#[derive(Debug)]
pub enum Stop {
    /// The store stands otherwise than we thought; the view knows it now.
    Outdated(String),
    /// The store failed: try again after a while.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Stop::Store(error)
    }
}

/// Carries out one action and takes its outcome into the view.
///
/// # Errors
/// When it was not carried out, or nobody can tell.
pub async fn perform(
    store: &SharedStore,
    action: &Action,
    view: &mut View,
    now: Duration,
) -> Result<(), Stop> {
    match action {
        Action::CreatePool(name, pool) => {
            write(store, name.as_str(), pool.as_ref(), None, view, now).await
        }
        Action::CreateBlock(block) => {
            write(
                store,
                &block.cidr.record_name(),
                block.as_ref(),
                None,
                view,
                now,
            )
            .await
        }
        Action::RestoreBlock { block, expected } => {
            let name = block.cidr.record_name();
            write(store, &name, block.as_ref(), expected.as_ref(), view, now).await
        }
        Action::SetPoolStatus {
            name,
            pool,
            expected,
        } => {
            write(
                store,
                name.as_str(),
                pool.as_ref(),
                Some(expected),
                view,
                now,
            )
            .await
        }
        Action::SetBlockState {
            block,
            expected,
            guard,
        } => {
            verify(store, block, *guard, view, now).await?;
            let name = block.cidr.record_name();
            write(store, &name, block.as_ref(), Some(expected), view, now).await
        }
        Action::DeleteBlock {
            block,
            expected,
            guard,
        } => {
            verify(store, block, *guard, view, now).await?;
            let name = block.cidr.record_name();
            match store.delete(Kind::Block, &name, expected).await {
                Ok(()) => {
                    view.learn(Kind::Block, &name, None, now);
                    Ok(())
                }
                Err(error) => Err(outdated(store, Kind::Block, &name, error, view, now).await),
            }
        }
    }
}

/// Creates a record, or replaces the expected version of it.
async fn write<T: Record>(
    store: &SharedStore,
    name: &str,
    record: &T,
    expected: Option<&Version>,
    view: &mut View,
    now: Duration,
) -> Result<(), Stop> {
    let value = records::encode(name, record).map_err(StoreError::from)?;
    let written = match expected {
        None => store.create(T::KIND, name, &value, None).await,
        Some(expected) => store.update(T::KIND, name, &value, expected, None).await,
    };
    match written {
        Ok(version) => {
            let entry = Entry {
                name: name.to_owned(),
                value,
                version,
            };
            view.learn(T::KIND, name, Some(entry), now);
            Ok(())
        }
        Err(error) => Err(outdated(store, T::KIND, name, error, view, now).await),
    }
}

/// Reads how a record stands after a write of it was turned down.
async fn outdated(
    store: &SharedStore,
    kind: Kind,
    name: &str,
    error: StoreError,
    view: &mut View,
    now: Duration,
) -> Stop {
    if !matches!(
        error,
        StoreError::AlreadyExists { .. } | StoreError::Conflict { .. }
    ) {
        return Stop::Store(error);
    }
    match store.get(kind, name).await {
        Ok(entry) => {
            view.learn(kind, name, entry, now);
            Stop::Outdated(error.to_string())
        }
        Err(error) => Stop::Store(error),
    }
}

/// Makes sure of what must be so before a block is taken from a node.
async fn verify(
    store: &SharedStore,
    block: &Block,
    guard: Guard,
    view: &mut View,
    now: Duration,
) -> Result<(), Stop> {
    let node: &NodeName = &block.node;
    match guard {
        Guard::None => Ok(()),
        Guard::NodeGone => {
            absent(store, Kind::Claim, node, view, now).await?;
            gone(store, node, view, now).await
        }
        Guard::NodeRemoved => {
            absent(store, Kind::Claim, node, view, now).await?;
            absent(store, Kind::Node, node, view, now).await?;
            gone(store, node, view, now).await
        }
        Guard::Given => {
            let entry = store.get(Kind::Claim, node.as_str()).await?;
            let claim = entry
                .as_ref()
                .and_then(|e| records::decode::<Claim>(e).ok());
            let given = claim.is_some_and(|claim| {
                claim.record.gives(block)
                    && !claim.record.blocks.contains_key(&block.cidr.record_name())
            });
            if given {
                return Ok(());
            }
            view.learn(Kind::Claim, node.as_str(), entry, now);
            Err(Stop::Outdated(format!(
                "node {:?} no longer gives block {}",
                node.as_str(),
                block.cidr
            )))
        }
    }
}

/// Makes sure that the cluster itself knows no such node, where it knows of nodes:
/// records that somebody deleted by hand free nothing while their node stands.
async fn gone(
    store: &SharedStore,
    node: &NodeName,
    view: &mut View,
    now: Duration,
) -> Result<(), Stop> {
    if store.node_stands(node.as_str()).await? != Some(true) {
        return Ok(());
    }
    view.stands(node, now);
    Err(Stop::Outdated(format!(
        "the Node {:?} stands, though its records are gone",
        node.as_str()
    )))
}

/// Makes sure that the node has no record of this kind.
async fn absent(
    store: &SharedStore,
    kind: Kind,
    node: &NodeName,
    view: &mut View,
    now: Duration,
) -> Result<(), Stop> {
    match store.get(kind, node.as_str()).await? {
        None => Ok(()),
        found => {
            view.learn(kind, node.as_str(), found, now);
            Err(Stop::Outdated(format!(
                "{kind} {:?} is there",
                node.as_str()
            )))
        }
    }
}
