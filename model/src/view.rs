//! The cluster as one agent sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Block, Cidr, Node, NodeName, Pool, PoolName};

/// All pools, blocks and nodes at one moment: what backends decide on.
///
/// A view is copied for each change that somebody may have to see, and several are alive at
/// a time: the records of nodes and blocks are shared between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Pools by name.
    pub pools: BTreeMap<PoolName, Pool>,
    /// Blocks by CIDR.
    pub blocks: BTreeMap<Cidr, Arc<Block>>,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, Arc<Node>>,
    /// Records that could not be read, as `kind/name`, with the reason. While
    /// there are any, what is missing from the view proves nothing, so nothing
    /// that belongs to a peer may be swept.
    pub unreadable: BTreeMap<String, String>,
}

impl ClusterView {
    /// The blocks that belong to `node`, in address order.
    pub fn blocks_of<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Block> + 'a {
        self.blocks
            .values()
            .map(Arc::as_ref)
            .filter(move |block| &block.node == node)
    }
}
