//! Which pods have to be cut off, because their address belongs to another node now: a
//! pure function of the view and the ledger.
//!
//! That happens to a node that was away for longer than its blocks were kept for it.
//! Used by the dataplane, which takes such a pod's route away and forwards nothing that
//! it sends, and by the CNI server, which reports it. The pod itself is left standing:
//! the runtime has to delete it, and CHECK tells it to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use viaduct_model::{Cidr, ClusterView, Endpoint, NodeName};

/// Whose address a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The attachment, for people.
    pub attachment: String,
    /// The address.
    pub address: IpAddr,
    /// The block that it is in.
    pub block: Cidr,
    /// The node that owns the block.
    pub owner: NodeName,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attachment {} is cut off: its address {} is in block {}, which belongs to node {:?} \
             now; delete the pod",
            self.attachment,
            self.address,
            self.block,
            self.owner.as_str()
        )
    }
}

/// The endpoints to be cut off, by link. `disputed` are blocks that we hold although an
/// older record names another.
pub fn foreign<'a>(
    view: &ClusterView,
    node: &NodeName,
    disputed: &BTreeSet<Cidr>,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> BTreeMap<String, Foreign> {
    let by_address: BTreeMap<IpAddr, &Endpoint> = endpoints
        .into_iter()
        .flat_map(|endpoint| endpoint.addresses.iter().map(move |a| (*a, endpoint)))
        .collect();
    if by_address.is_empty() {
        return BTreeMap::new();
    }
    view.blocks
        .values()
        .filter(|block| block.node != *node && !disputed.contains(&block.cidr))
        .flat_map(|block| {
            by_address
                .range(block.cidr.first()..=block.cidr.last())
                .map(move |(address, endpoint)| {
                    let foreign = Foreign {
                        attachment: endpoint.id.to_string(),
                        address: *address,
                        block: block.cidr,
                        owner: block.node.clone(),
                    };
                    (endpoint.link.clone(), foreign)
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::{Cluster, endpoint};

    #[test]
    fn only_pods_in_a_block_of_another_node_are_cut_off() {
        let state = Cluster::new().state();
        let ours = endpoint("a", "10.64.0.5", true);
        let theirs = endpoint("b", "10.64.1.5", true);
        let nobodys = endpoint("c", "10.64.7.5", true);
        let all = [&ours, &theirs, &nobodys];
        let none = BTreeSet::new();
        let cut = foreign(&state.view, &state.local.name, &none, all);
        assert_eq!(cut.keys().collect::<Vec<_>>(), [&theirs.link]);
        let told = cut[&theirs.link].to_string();
        assert!(
            told.contains("10.64.1.5") && told.contains("\"b\""),
            "{told}"
        );
        let disputed = BTreeSet::from(["10.64.1.0/26".parse().unwrap()]);
        assert!(foreign(&state.view, &state.local.name, &disputed, all).is_empty());
    }
}
