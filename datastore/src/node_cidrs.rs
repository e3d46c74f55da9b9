//! What `spec.podCIDRs` of Kubernetes' Node objects has to do with blocks: `--node-cidrs`.

use clap::{Args, ValueEnum};
use viaduct_model::Invalid;

use crate::url::StoreOptions;

/// The flag, for agent and controller.
#[derive(Debug, Clone, Args)]
pub struct NodeCidrsArgs {
    /// What the pod CIDRs of Kubernetes' Nodes have to do with blocks (--datastore kube): off;
    /// adopt, blocks are those that kube-controller-manager or a cloud has given the Node;
    /// or publish, the controller writes each node's first block of each family there
    #[arg(
        long,
        env = "VIADUCT_NODE_CIDRS",
        value_name = "off|adopt|publish",
        default_value = "off"
    )]
    pub node_cidrs: NodeCidrs,
}

/// What a Node's pod CIDRs have to do with its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NodeCidrs {
    /// Nothing.
    #[default]
    Off,
    /// They are its blocks.
    Adopt,
    /// Its first blocks are written there.
    Publish,
}

impl NodeCidrsArgs {
    /// The choice, if the datastore knows of Nodes.
    ///
    /// # Errors
    /// When it is another one than kube.
    pub fn choice(&self, options: &StoreOptions) -> Result<NodeCidrs, Invalid> {
        if self.node_cidrs != NodeCidrs::Off && options.url != "kube" {
            let value = self.node_cidrs.to_possible_value();
            return Err(Invalid::new(
                "flag",
                "--node-cidrs",
                value.map(|v| v.get_name().to_owned()).unwrap_or_default(),
                "adopt and publish go with --datastore kube only: no other knows of Nodes",
            ));
        }
        Ok(self.node_cidrs)
    }
}
