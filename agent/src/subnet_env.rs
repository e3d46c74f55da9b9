//! `subnet.env`: flannel's four keys, for what was written to read them.

use std::fmt::Write as _;

use viaduct_model::Cidr;

use crate::egress::masquerade::nat_outgoing;
use crate::state::NodeState;

/// The file's content; `None` while the node has no block.
pub fn content(state: &NodeState) -> Option<String> {
    let overlay = state.local.overlay?;
    let block = state
        .view
        .blocks_of(&state.local.name)
        .find(|b| b.cidr.contains(overlay.into()))?;
    let network: Cidr = state
        .view
        .pools
        .get(&block.pool)
        .map_or(block.cidr, |p| p.cidr);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "FLANNEL_NETWORK={network}");
    let _ = writeln!(text, "FLANNEL_SUBNET={overlay}/{}", block.cidr.prefix_len());
    let _ = writeln!(text, "FLANNEL_MTU={}", state.local.mtu);
    let masquerade = state.local.masquerade && nat_outgoing(state.view.pools.get(&block.pool));
    let _ = writeln!(text, "FLANNEL_IPMASQ={masquerade}");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{LocalNode, UnderlayLink};
    use std::sync::Arc;
    use viaduct_model::{Block, ClusterView, Pool};

    #[test]
    fn the_four_keys_are_flannels() {
        let name: viaduct_model::NodeName = "n1".parse().unwrap();
        let mut view = ClusterView::default();
        view.pools.insert(
            "default".parse().unwrap(),
            Pool::new("10.64.0.0/16".parse().unwrap(), None),
        );
        let block: Cidr = "10.64.3.0/26".parse().unwrap();
        view.blocks.insert(
            block,
            Block::new(block, "default".parse().unwrap(), name.clone(), 1).into(),
        );
        let mut state = NodeState {
            local: LocalNode {
                carrier: viaduct_model::Backend::HostGw,
                direct_routing: false,
                masquerade: true,
                name,
                underlay: UnderlayLink {
                    name: "eth0".into(),
                    index: 2,
                    address: "192.0.2.1".parse().unwrap(),
                    public_address: "192.0.2.1".parse().unwrap(),
                    networks: Vec::new(),
                    mac: None,
                    mtu: 1500,
                },
                mtu: 1450,
                overlay: None,
            },
            view: Arc::new(view),
            on_link: Default::default(),
            disputed: Default::default(),
            lost: Default::default(),
        };
        assert_eq!(content(&state), None);
        state.local.overlay = Some("10.64.3.0".parse().unwrap());
        assert_eq!(
            content(&state).unwrap(),
            "FLANNEL_NETWORK=10.64.0.0/16\nFLANNEL_SUBNET=10.64.3.0/26\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        let says_no = |state: &NodeState| {
            let content = content(state).unwrap();
            content.ends_with("FLANNEL_IPMASQ=false\n")
        };
        state.local.masquerade = false;
        assert!(says_no(&state));
        state.local.masquerade = true;
        let mut view = (*state.view).clone();
        for pool in view.pools.values_mut() {
            pool.nat_outgoing = false;
        }
        state.view = Arc::new(view);
        assert!(says_no(&state));
    }
}
