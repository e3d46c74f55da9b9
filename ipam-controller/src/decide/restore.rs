//! Blocks that agents hold and the store has forgotten, because it was put back to an
//! older state or somebody deleted a record.
//!
//! The proof is the generation that the agent was granted: it says which of two grants
//! is the later one. A record whose owner holds it as the record says is right, and
//! whoever claims it otherwise has been away for too long. This goes on while the
//! controller only listens; that is what it listens for.

use std::collections::{BTreeMap, BTreeSet};

use viaduct_model::{Block, Cidr, NodeName};

use super::{Action, Decision, Moment};

/// Gives forgotten blocks back; returns which.
pub(super) fn restore(moment: &Moment<'_>, decision: &mut Decision) -> BTreeSet<Cidr> {
    let view = moment.view;
    let mut restored = BTreeSet::new();
    for (cidr, (generation, node)) in claimed(moment) {
        let record = view.blocks.get(&cidr);
        let expected = match record {
            Some(block) if block.record.generation >= generation => continue,
            Some(block) if confirmed(moment, &block.record) => continue,
            Some(block) => Some(block.version.clone()),
            None => None,
        };
        // What overlaps it was given to somebody else: that cannot be put right here.
        let overlaps = view
            .blocks
            .keys()
            .copied()
            .chain(view.unreadable_blocks())
            .chain(restored.iter().copied())
            .any(|other| other.overlaps(&cidr) && (other != cidr || record.is_none()));
        let pool = view.pools.iter().find(|(_, p)| p.record.cidr.covers(&cidr));
        let (false, Some((pool, _))) = (overlaps, pool) else {
            decision.problems.push(format!(
                "node {:?} holds block {cidr}, of which the store knows nothing, and it {}; its \
                 pods there must be deleted",
                node.as_str(),
                if overlaps {
                    "overlaps a block that is given"
                } else {
                    "is in no pool"
                }
            ));
            continue;
        };
        let block = moment.granted(&Block::new(cidr, pool.clone(), node.clone(), 0), node);
        decision
            .actions
            .push(Action::RestoreBlock { block, expected });
        restored.insert(cidr);
    }
    restored
}

/// What living nodes hold at a later generation than the record's: by block the latest
/// grant and whose it is.
fn claimed<'a>(moment: &Moment<'a>) -> BTreeMap<Cidr, (u64, &'a NodeName)> {
    let mut claimed: BTreeMap<Cidr, (u64, &NodeName)> = BTreeMap::new();
    for (node, claim) in &moment.view.claims {
        for (name, &generation) in &claim.record.holds {
            let Some(cidr) = Cidr::from_record_name(name) else {
                continue;
            };
            // Whoever was cut off for too long may be an owner of the past: first all are
            // heard who are not.
            if moment.listens && claim.record.renews.get(name) == Some(&generation) {
                continue;
            }
            let standing = moment.view.blocks.get(&cidr);
            if standing.is_some_and(|block| block.record.generation >= generation) {
                continue;
            }
            let latest = claimed.entry(cidr).or_insert((generation, node));
            if generation > latest.0 {
                *latest = (generation, node);
            }
        }
    }
    claimed
}

/// Whether the owner that the record names lives, and holds just this grant and trusts
/// it: one that was away for too long may be an owner of the past.
fn confirmed(moment: &Moment<'_>, block: &Block) -> bool {
    let claim = moment.view.claims.get(&block.node);
    claim.is_some_and(|claim| {
        claim.record.holds(&block.cidr.record_name()) == Some(block.generation)
            && !claim.record.renews(block)
    })
}
