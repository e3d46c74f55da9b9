//! Telling blocks that the controller made from blocks that somebody's hand made wrongly:
//! outside of their pool, or over addresses that another block has.
//!
//! Agents route to no block that is found here, and the controller names each on the record
//! itself. Which of two overlapping blocks is the wrong one must come out the same
//! everywhere, so that it depends on the records alone.

use std::collections::BTreeMap;

use crate::{Block, Cidr, Invalid, Pool, PoolName};

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockFault {
    /// Its addresses are not those of its pool.
    OutsidePool {
        /// The pool's range.
        pool: Cidr,
    },
    /// Another block has some of its addresses.
    Overlaps {
        /// The other block, which stays.
        other: Cidr,
    },
}

impl BlockFault {
    /// One word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OutsidePool { .. } => "OutsidePool",
            Self::Overlaps { .. } => "Overlaps",
        }
    }

    /// The refusal of `block`, as a sentence.
    pub fn refusal(&self, block: &Block) -> Invalid {
        let pool = block.pool.as_str();
        let allowed = match self {
            Self::OutsidePool { pool: range } => {
                format!("a block of pool {pool:?} lies inside {range}; nobody routes to it")
            }
            Self::Overlaps { other } => {
                format!("block {other} has some of its addresses; nobody routes to it")
            }
        };
        let object = format!("block {:?}", block.cidr.record_name());
        Invalid::new(object, "cidr", block.cidr, allowed)
    }
}

/// The blocks that are wrong, of all in address order. A block whose pool is gone is none:
/// its pods may run.
pub fn block_faults<'a>(
    blocks: impl IntoIterator<Item = &'a Block>,
    pool: impl Fn(&PoolName) -> Option<&'a Pool>,
) -> BTreeMap<Cidr, BlockFault> {
    let mut faults = BTreeMap::new();
    // Blocks overlap only by one covering the other, and then the outer comes first.
    let mut outer: Option<(&Block, bool)> = None;
    for block in blocks {
        let its = pool(&block.pool);
        if let Some(its) = its.filter(|its| !its.cidr.covers(&block.cidr)) {
            let fault = BlockFault::OutsidePool { pool: its.cidr };
            faults.insert(block.cidr, fault);
            continue;
        }
        // As the controller carves them.
        let proper = its.is_some_and(|its| its.block_len() == block.cidr.prefix_len());
        match outer {
            Some((other, other_proper)) if other.cidr.covers(&block.cidr) => {
                if proper && !other_proper {
                    let by = BlockFault::Overlaps { other: block.cidr };
                    faults.insert(other.cidr, by);
                } else {
                    let by = BlockFault::Overlaps { other: other.cidr };
                    faults.insert(block.cidr, by);
                    continue;
                }
            }
            _ => {}
        }
        outer = Some((block, proper));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(blocks: &[(&str, &str)]) -> Vec<String> {
        let pool = Pool::new("10.0.0.0/16".parse().unwrap(), Some(26));
        let mut all: Vec<Block> = blocks
            .iter()
            .map(|(cidr, pool)| {
                let node = "n".parse().unwrap();
                Block::new(cidr.parse().unwrap(), pool.parse().unwrap(), node, 1)
            })
            .collect();
        all.sort_by_key(|block| block.cidr);
        let faults = block_faults(&all, |name| (name.as_str() == "p").then_some(&pool));
        faults
            .iter()
            .map(|(cidr, fault)| match fault {
                BlockFault::OutsidePool { .. } => format!("{cidr} outside"),
                BlockFault::Overlaps { other } => format!("{cidr} over {other}"),
            })
            .collect()
    }

    #[test]
    fn blocks_as_the_controller_makes_them_are_right() {
        let none: [String; 0] = [];
        assert_eq!(found(&[("10.0.0.0/26", "p"), ("10.0.0.64/26", "p")]), none);
        // Of another size, as after a change of the pool's; and of a pool that is gone.
        assert_eq!(found(&[("10.0.0.0/27", "p"), ("10.9.0.0/26", "x")]), none);
    }

    #[test]
    fn a_block_outside_its_pool_is_wrong() {
        assert_eq!(found(&[("192.0.2.0/26", "p")]), ["192.0.2.0/26 outside"]);
        assert_eq!(found(&[("10.0.0.0/15", "p")]), ["10.0.0.0/15 outside"]);
    }

    #[test]
    fn of_two_that_overlap_the_one_of_the_pools_size_stays() {
        for (one, other, wrong) in [
            ("10.0.0.0/26", "10.0.0.0/28", "10.0.0.0/28 over 10.0.0.0/26"),
            ("10.0.0.0/26", "10.0.0.0/24", "10.0.0.0/24 over 10.0.0.0/26"),
            ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.0/25 over 10.0.0.0/24"),
        ] {
            assert_eq!(found(&[(one, "p"), (other, "p")]), [wrong]);
        }
    }

    #[test]
    fn one_that_covers_many_makes_none_of_them_wrong() {
        assert_eq!(
            found(&[
                ("10.0.0.0/24", "p"),
                ("10.0.0.0/26", "p"),
                ("10.0.0.64/26", "p"),
                ("10.0.0.96/27", "p"),
            ]),
            [
                "10.0.0.0/24 over 10.0.0.0/26",
                "10.0.0.96/27 over 10.0.0.64/26"
            ]
        );
    }
}
