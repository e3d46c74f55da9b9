//! Everything that the store holds, read once, and what follows from it.

use viaduct_datastore::{Named, Records, StoreError};
use viaduct_model::{Block, BlockUsage, Claim, Invalid, Node, Pool};

/// All records as they were read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// In name order, as are the others.
    pub(crate) pools: Vec<Named<Pool>>,
    pub(crate) blocks: Vec<Named<Block>>,
    pub(crate) nodes: Vec<Named<Node>>,
    pub(crate) claims: Vec<Named<Claim>>,
    /// What is wrong with records that could not be read.
    pub(crate) unreadable: Vec<Invalid>,
}

impl Snapshot {
    /// Reads all four kinds.
    pub(crate) async fn read(records: &Records) -> Result<Self, StoreError> {
        let (pools, mut unreadable) = records.list().await?;
        let (blocks, bad_blocks) = records.list::<Block>().await?;
        let (nodes, bad_nodes) = records.list().await?;
        let (claims, bad_claims) = records.list().await?;
        unreadable.extend(bad_blocks);
        unreadable.extend(bad_nodes);
        unreadable.extend(bad_claims);
        let mut blocks = blocks;
        blocks.sort_by_key(|block| block.record.cidr);
        Ok(Self {
            pools,
            blocks,
            nodes,
            claims,
            unreadable,
        })
    }

    /// The claim of a node; absent when its agent is not alive.
    pub(crate) fn claim(&self, node: &str) -> Option<&Claim> {
        let found = self.claims.iter().find(|claim| claim.name == node)?;
        Some(&found.record)
    }

    /// How a block is used, as its node says.
    pub(crate) fn usage(&self, block: &Block) -> Option<BlockUsage> {
        let claim = self.claim(block.node.as_str())?;
        claim.blocks.get(&block.cidr.record_name()).copied()
    }

    /// The blocks of a node.
    pub(crate) fn blocks_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Block> + 'a {
        let all = self.blocks.iter().map(|block| &block.record);
        all.filter(move |block| block.node.as_str() == node)
    }

    /// How many blocks were carved from a pool.
    pub(crate) fn blocks_from(&self, pool: &str) -> usize {
        let of_pool = |block: &&Named<Block>| block.record.pool.as_str() == pool;
        self.blocks.iter().filter(of_pool).count()
    }
}
