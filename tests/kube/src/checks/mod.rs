//! The checks in the order that they run in: each finds the cluster as the one before it
//! has left it, and leaves it whole.

mod addresses;
mod crowd;
mod leaving;
mod mistakes;
mod node_cidrs;
mod outages;
mod pairs;
mod permissions;
mod rollout;
mod services;
mod talk;
mod whole_nodes;

use anyhow::Result;

use crate::cluster::Cluster;

/// One thing that must be so.
pub(crate) struct Check {
    /// What is so when it passes.
    pub(crate) name: &'static str,
    /// In which runs.
    pub(crate) when: When,
    /// Finds out; what it has to tell beside that it passed, if anything.
    pub(crate) run: fn(&Cluster) -> Result<String>,
}

/// Which runs a check is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// All: it depends on kube-proxy, or on where blocks come from.
    Always,
    /// Those that are not --short.
    Once,
    /// Those, and the one that CI has the time for.
    Brief,
    /// Those where nodes have pod CIDRs that are adopted.
    Adopting,
    /// Those that are told to take Viaduct away in the end.
    Leaving,
}

/// The number of pods that most checks talk to.
const WEB: usize = 12;

const fn always(name: &'static str, run: fn(&Cluster) -> Result<String>) -> Check {
    let when = When::Always;
    Check { name, when, run }
}

const fn once(name: &'static str, run: fn(&Cluster) -> Result<String>) -> Check {
    let when = When::Once;
    Check { name, when, run }
}

const fn brief(name: &'static str, run: fn(&Cluster) -> Result<String>) -> Check {
    let when = When::Brief;
    Check { name, when, run }
}

const fn adopting(name: &'static str, run: fn(&Cluster) -> Result<String>) -> Check {
    let when = When::Adopting;
    Check { name, when, run }
}

const fn leaving(name: &'static str, run: fn(&Cluster) -> Result<String>) -> Check {
    let when = When::Leaving;
    Check { name, when, run }
}

/// All of them.
pub(crate) const ALL: &[Check] = &[
    always("deploying Viaduct makes the nodes Ready", rollout::deploy),
    always(
        "the agents have NET_ADMIN and no other capability",
        rollout::privileges,
    ),
    brief(
        "an agent's token writes nothing that is another node's",
        permissions::stolen_token,
    ),
    always(
        "a Deployment of 12 pods spreads over the nodes",
        pairs::spread,
    ),
    always(
        "every pod reaches every pod, at the addresses that the API says",
        pairs::mesh,
    ),
    adopting(
        "each node's one block is the pod CIDR of its Node",
        node_cidrs::adopted,
    ),
    always("every node reaches every pod", pairs::from_nodes),
    always("a pod reaches what is outside, as its node", pairs::outside),
    always(
        "a ClusterIP is answered by all pods of its service",
        services::cluster_ip,
    ),
    always(
        "a NodePort is answered on every node, for everybody",
        services::node_port,
    ),
    always(
        "a pod reaches itself by its own services",
        services::hairpin,
    ),
    always(
        "a hostPort works, by the chained portmap",
        services::host_port,
    ),
    always(
        "the API server's service address works in a pod on every node",
        services::api_server,
    ),
    always("names are resolved", services::names),
    always("kubectl logs and exec work", talk::logs_and_exec),
    always("kubectl port-forward works", talk::port_forward),
    brief(
        "a rolling update of the DaemonSet loses no packet",
        rollout::update,
    ),
    brief(
        "a node's kubelet and containerd are restarted, and its pods never notice",
        whole_nodes::daemons,
    ),
    brief(
        "a node is drained, deleted and comes back under its old name",
        whole_nodes::returns,
    ),
    once(
        "the API server and etcd are away for a while, and packets flow",
        outages::control_plane,
    ),
    once(
        "pods wait while the pool is used up, and start from a second one",
        crowd::second_pool,
    ),
    once("110 pods on one node start at once", crowd::starts),
    brief(
        "blocks written wrongly by hand are told of and change nothing",
        mistakes::wrong_blocks,
    ),
    once(
        "an agent without a permission names verb and resource, and is not ready",
        mistakes::missing_verb,
    ),
    once(
        "with definitions of another version packets flow, and agents say what is wrong",
        mistakes::wrong_definitions,
    ),
    brief(
        "a second installation stands aside and says so",
        mistakes::second_installation,
    ),
    brief(
        "`ipam check` finds a running cluster clean, and a leak and a stranger that were planted",
        addresses::compared,
    ),
    once(
        "publishing writes each node's first block into its Node",
        node_cidrs::published,
    ),
    once(
        "every permission was used, and no call was denied",
        permissions::audited,
    ),
    leaving(
        "what is deleted and cleaned by deploy/uninstall leaves nodes as they were before",
        leaving::uninstalled,
    ),
    leaving(
        "the chart is installed by helm, and every pod reaches every pod",
        leaving::chart,
    ),
];
