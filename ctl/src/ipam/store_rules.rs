//! What the store's records say of each other: blocks that overlap, that are in no pool,
//! that belong to nobody, or that another holds. Pure, a part of the comparison.

use viaduct_datastore::Named;
use viaduct_model::{Block, Claim, Kind, Pool};

use super::compare::{Facts, Finding, Repair, Sort, lives};

/// The contradictions within the store.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let snapshot = &facts.snapshot;
    let mut findings = overlaps(&snapshot.blocks);
    findings.extend(pools_that_overlap(&snapshot.pools));
    for named in &snapshot.blocks {
        findings.extend(out_of_pool(&snapshot.pools, named));
        let node = named.record.node.as_str();
        let known = snapshot.nodes.iter().any(|n| n.name == node)
            || snapshot.claims.iter().any(|n| n.name == node);
        if !known && lives(&named.record) {
            findings.push(Finding {
                sort: Sort::Leak,
                subject: format!("block/{}", named.name),
                text: format!(
                    "block {} belongs to node {node}, of which there is no other record",
                    named.record.cidr
                ),
                repair: vec![Repair::Record(Kind::Block, named.name.clone())],
            });
        }
    }
    for claim in &snapshot.claims {
        findings.extend(disputes(&snapshot.blocks, claim));
    }
    for invalid in &snapshot.unreadable {
        findings.push(Finding {
            sort: Sort::Orphan,
            subject: format!("record/{}", invalid.object),
            text: format!("a record of the store cannot be read: {invalid}"),
            repair: record_of(&invalid.object).into_iter().collect(),
        });
    }
    findings
}

/// Which record a complaint is about: `block "10.64.0.0-26"`.
fn record_of(what: &str) -> Option<Repair> {
    let (kind, name) = what.split_once(' ')?;
    let kinds = [Kind::Pool, Kind::Block, Kind::Node, Kind::Claim];
    let kind = kinds.into_iter().find(|k| k.to_string() == kind)?;
    Some(Repair::Record(kind, name.trim_matches('"').to_owned()))
}

fn overlaps(blocks: &[Named<Block>]) -> Vec<Finding> {
    let mut sorted: Vec<&Named<Block>> = blocks.iter().collect();
    sorted.sort_by_key(|named| named.record.cidr);
    let mut findings = Vec::new();
    // Whoever covers comes before what it covers.
    let mut open: Vec<&Named<Block>> = Vec::new();
    for named in sorted {
        open.retain(|earlier| earlier.record.cidr.overlaps(&named.record.cidr));
        for earlier in &open {
            let (a, b) = (&earlier.record, &named.record);
            let newer = if a.generation > b.generation {
                earlier
            } else {
                &named
            };
            findings.push(Finding {
                sort: Sort::Duplicate,
                subject: format!("block/{}/{}", earlier.name, named.name),
                text: format!(
                    "block {} of node {} and block {} of node {} overlap",
                    a.cidr, a.node, b.cidr, b.node
                ),
                repair: vec![Repair::Record(Kind::Block, newer.name.clone())],
            });
        }
        open.push(named);
    }
    findings
}

fn pools_that_overlap(pools: &[Named<Pool>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, one) in pools.iter().enumerate() {
        for other in pools.iter().skip(i + 1) {
            if one.record.cidr.overlaps(&other.record.cidr) {
                findings.push(Finding {
                    sort: Sort::Duplicate,
                    subject: format!("pool/{}/{}", one.name, other.name),
                    text: format!(
                        "pool {} ({}) and pool {} ({}) overlap",
                        one.name, one.record.cidr, other.name, other.record.cidr
                    ),
                    repair: vec![Repair::Here(format!(
                        "viaductctl pools delete {}",
                        other.name
                    ))],
                });
            }
        }
    }
    findings
}

fn out_of_pool(pools: &[Named<Pool>], named: &Named<Block>) -> Option<Finding> {
    let block = &named.record;
    let pool = pools.iter().find(|pool| pool.name == block.pool.as_str());
    let why = match pool {
        Some(pool) if pool.record.cidr.covers(&block.cidr) => return None,
        Some(pool) => format!(
            "is not within its pool {} ({})",
            pool.name, pool.record.cidr
        ),
        None => format!("is of pool {}, which does not exist", block.pool),
    };
    Some(Finding {
        sort: Sort::Stranger,
        subject: format!("block/{}", named.name),
        text: format!("block {} of node {} {why}", block.cidr, block.node),
        repair: vec![Repair::Record(Kind::Block, named.name.clone())],
    })
}

fn disputes(blocks: &[Named<Block>], claim: &Named<Claim>) -> Vec<Finding> {
    let held = claim.record.holds.iter();
    held.filter_map(|(name, generation)| {
        let record = blocks.iter().find(|block| block.name == *name);
        let whose = match record {
            Some(block) if block.record.node.as_str() == claim.name => return None,
            Some(block) => format!("whose record gives it to node {}", block.record.node),
            None => "which has no record".to_owned(),
        };
        Some(Finding {
            sort: Sort::Duplicate,
            subject: format!("claim/{}/{name}", claim.name),
            text: format!(
                "node {} holds block {name} (generation {generation}), {whose}",
                claim.name
            ),
            // Controllers give back by proof, once they are told that something is lost.
            repair: vec![Repair::Here(
                "systemctl stop viaduct-controller; viaduct-controller --restored".to_owned(),
            )],
        })
    })
    .collect()
}
