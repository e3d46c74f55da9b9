//! STATUS: whether an ADD would succeed now, as a pure function of what the tasks
//! publish.

use viaduct_cni::CniError;
use viaduct_model::{BlockState, Cidr};

use crate::memory::Memory;
use crate::state::{AddressUsage, DataplaneReport, NodeState};

/// What keeps ADD from succeeding: code 50, or 51 where attached pods suffer too.
/// `memory` is what an agent goes by that has not read the datastore yet, if it may.
pub(super) fn trouble(
    node: Option<&NodeState>,
    memory: Option<&Memory>,
    report: &DataplaneReport,
    usage: &AddressUsage,
) -> Option<CniError> {
    let unavailable =
        |why: &str| CniError::new(CniError::NOT_AVAILABLE, format!("viaduct-agent: {why}"));
    let serving: Vec<Cidr> = match (node, memory) {
        (Some(node), _) => {
            if node.local.overlay.is_none() {
                return Some(unavailable("this node owns no block of pod addresses yet"));
            }
            if !report.can_wire {
                return Some(not_standing(report));
            }
            let blocks = node.view.blocks_of(&node.local.name);
            let active = blocks.filter(|block| block.state == BlockState::Active);
            active.map(|block| block.cidr).collect()
        }
        (None, Some(memory)) => memory.serving.iter().copied().collect(),
        (None, None) => {
            return Some(unavailable(
                "it has not read the cluster from the datastore yet",
            ));
        }
    };
    let counted: Vec<_> = serving
        .iter()
        .filter_map(|block| usage.blocks.get(block))
        .collect();
    // A block that is not counted yet has just come.
    if counted.len() == serving.len() && counted.iter().all(|block| block.free == 0) {
        return Some(
            unavailable(&format!(
                "no address is free in the {} blocks of this node",
                serving.len()
            ))
            .with_details("attached pods are not affected; the controller gives another block when a pool has one"),
        );
    }
    None
}

/// The node's own network was never verified since the agent started.
fn not_standing(report: &DataplaneReport) -> CniError {
    match report.problems.first() {
        // Something is wrong with what pods stand on that are attached already.
        Some(problem) => CniError::new(
            CniError::LIMITED_CONNECTIVITY,
            format!("viaduct-agent: the node's network does not stand: {problem}"),
        )
        .with_details(report.problems.join("; ")),
        None => CniError::new(
            CniError::NOT_AVAILABLE,
            "viaduct-agent: the node's network is not verified yet",
        ),
    }
}
