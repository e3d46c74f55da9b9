//! Which pods have to be cut off, because their address belongs to another node now, or
//! may any moment: a pure function of the node's state and the ledger.
//!
//! That happens to a node that was away for longer than its blocks were kept for it.
//! Used by the dataplane, which takes such a pod's route away and forwards nothing that
//! it sends, and by the CNI server, which reports it. The pod itself is left standing:
//! the runtime has to delete it, and CHECK tells it to.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use viaduct_model::{Cidr, Endpoint, NodeName};

use crate::state::NodeState;

/// Whose address a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The attachment, for people.
    pub attachment: String,
    /// The address.
    pub address: IpAddr,
    /// The block that it is in.
    pub block: Cidr,
    /// The node that owns the block; none while it is free.
    pub owner: Option<NodeName>,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attachment {} is cut off: its address {} is in block {}, which ",
            self.attachment, self.address, self.block
        )?;
        match &self.owner {
            Some(owner) => write!(f, "belongs to node {:?} now", owner.as_str())?,
            None => f.write_str("went to another node and is free now")?,
        }
        f.write_str("; delete the pod")
    }
}

/// The endpoints to be cut off, by link. Not those in a block that we hold although an
/// older record names another.
pub fn foreign<'a>(
    state: &NodeState,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> BTreeMap<String, Foreign> {
    let by_address: BTreeMap<IpAddr, &Endpoint> = endpoints
        .into_iter()
        .flat_map(|endpoint| endpoint.addresses.iter().map(move |a| (*a, endpoint)))
        .collect();
    if by_address.is_empty() {
        return BTreeMap::new();
    }
    let (view, node) = (&state.view, &state.local.name);
    let others = view
        .blocks
        .values()
        .filter(|block| block.node != *node && !state.disputed.contains(&block.cidr))
        .map(|block| (block.cidr, Some(block.node.clone())));
    // Another had it, and its owner of tomorrow will not wait until we have heard of it.
    let own: Vec<Cidr> = view.blocks_of(node).map(|block| block.cidr).collect();
    let ours = |cidr: &Cidr| own.iter().any(|block| block.overlaps(cidr));
    let lost = state.lost.iter().filter(|cidr| !ours(cidr));
    // Later entries replace earlier ones: an owner is told where there is one.
    lost.map(|cidr| (*cidr, None))
        .chain(others)
        .flat_map(|(cidr, owner)| {
            by_address
                .range(cidr.first()..=cidr.last())
                .map(move |(address, endpoint)| {
                    let foreign = Foreign {
                        attachment: endpoint.id.to_string(),
                        address: *address,
                        block: cidr,
                        owner: owner.clone(),
                    };
                    (endpoint.link.clone(), foreign)
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::dataplane::testing::{Cluster, endpoint};

    #[test]
    fn only_pods_in_a_block_of_another_node_are_cut_off() {
        let mut state = Cluster::new().state();
        let ours = endpoint("a", "10.64.0.5", true);
        let theirs = endpoint("b", "10.64.1.5", true);
        let nobodys = endpoint("c", "10.64.7.5", true);
        let all = [&ours, &theirs, &nobodys];
        let cut = foreign(&state, all);
        assert_eq!(cut.keys().collect::<Vec<_>>(), [&theirs.link]);
        let told = cut[&theirs.link].to_string();
        assert!(
            told.contains("10.64.1.5") && told.contains("\"b\""),
            "{told}"
        );
        state.disputed = Arc::new(BTreeSet::from(["10.64.1.0/26".parse().unwrap()]));
        assert!(foreign(&state, all).is_empty());
    }

    #[test]
    fn pods_of_a_block_that_was_lost_stay_cut_off_when_it_is_free_again() {
        let mut state = Cluster::new().state();
        let ours = endpoint("a", "10.64.0.5", true);
        let nobodys = endpoint("c", "10.64.7.5", true);
        // The first was lost and granted anew.
        let lost = ["10.64.0.0/26", "10.64.7.0/26"].map(|cidr| cidr.parse().unwrap());
        state.lost = Arc::new(BTreeSet::from(lost));
        let cut = foreign(&state, [&ours, &nobodys]);
        assert_eq!(cut.keys().collect::<Vec<_>>(), [&nobodys.link]);
        let told = cut[&nobodys.link].to_string();
        assert!(told.contains("is free now; delete the pod"), "{told}");
    }
}
