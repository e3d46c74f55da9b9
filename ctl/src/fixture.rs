//! Records for tests.

use viaduct_agent::inventory::{FORM, Inventory, PodRoute, Recorded};
use viaduct_datastore::{Named, Version};
use viaduct_model::{
    AttachmentId, Backend, Block, BlockUsage, Cidr, Claim, Condition, Endpoint, MacAddr, Node,
    PerFamily, Pool, PoolStatus,
};

use crate::snapshot::Snapshot;

pub(crate) fn named<T>(name: &str, record: T) -> Named<T> {
    Named {
        name: name.to_owned(),
        version: Version("7".to_owned()),
        record,
    }
}

pub(crate) fn node(name: &str, underlay: &str, network: &str) -> Named<Node> {
    let record = Node {
        incarnation: "i".to_owned(),
        underlay: viaduct_model::record::Underlay {
            v4: Some(underlay.parse().unwrap()),
            v6: None,
        },
        underlay_networks: vec![network.parse().unwrap()],
        backend: Backend::Vxlan {
            vni: 1,
            port: 8472,
            vtep_mac: MacAddr::derived("vtep", name),
        },
        overlay: Default::default(),
        mtu: 1450,
        labels: Default::default(),
        extra: Default::default(),
    };
    named(name, record)
}

/// Two nodes, one of them gone and without a block; an exhausted pool.
pub(crate) fn snapshot() -> Snapshot {
    let mut pool = Pool::new("10.64.0.0/26".parse().unwrap(), None);
    pool.status = Some(PoolStatus {
        exhausted_since: Some("2026-11-21T09:00:00Z".to_owned()),
        blocks_total: 1,
        blocks_free: 0,
        generation: 0,
    });
    let cidr = "10.64.0.0/26".parse().unwrap();
    let block = Block::new(cidr, "default".parse().unwrap(), "n1".parse().unwrap(), 1);
    let mut n1 = node("n1", "172.29.0.11", "172.29.0.0/24");
    n1.record.overlay.v4 = Some("10.64.0.0".parse().unwrap());
    let claim = Claim {
        incarnation: "i".to_owned(),
        host: "h".to_owned(),
        agent_version: "0.1.0".to_owned(),
        wants: PerFamily { v4: 2, v6: 0 },
        gives: Default::default(),
        holds: Default::default(),
        renews: Default::default(),
        ended: 1,
        blocks: [("10.64.0.0-26".to_owned(), BlockUsage { used: 60, free: 3 })].into(),
        conditions: vec![Condition {
            r#type: "BlocksAvailable".to_owned(),
            status: "False".to_owned(),
            reason: "PoolExhausted".to_owned(),
            message: "waits for a block".to_owned(),
            last_transition_time: "2026-11-21T09:00:00Z".to_owned(),
        }],
        extra: Default::default(),
    };
    Snapshot {
        pools: vec![named("default", pool)],
        blocks: vec![named("10.64.0.0-26", block)],
        nodes: vec![n1, node("n2", "172.29.0.12", "172.29.0.0/24")],
        claims: vec![named("n1", claim)],
        unreadable: vec![viaduct_model::Invalid::new(
            "pool \"x\"",
            "record",
            "{",
            "EOF while parsing",
        )],
    }
}

/// A record of the ledger that is wired.
pub(crate) fn recorded(container: &str, address: &str) -> Recorded {
    let id = AttachmentId::new(container, "eth0").unwrap();
    Recorded {
        endpoint: Endpoint {
            network: "viaduct".into(),
            netns: format!("/run/netns/{container}"),
            netns_id: (4, 5),
            addresses: vec![address.parse().unwrap()],
            mtu: 1450,
            allocated_at: 7,
            wired: true,
            ..Endpoint::bare(id)
        },
        namespace_seen: false,
    }
}

/// What a host holds that is as it should be.
pub(crate) fn inventory(pods: &[(&str, &str)]) -> Inventory {
    let attachments: Vec<Recorded> = pods.iter().map(|(c, a)| recorded(c, a)).collect();
    let links: Vec<String> = attachments
        .iter()
        .map(|recorded| recorded.endpoint.link.clone())
        .collect();
    Inventory {
        form: FORM,
        agent_runs: true,
        run_dir: "/run/viaduct".into(),
        now_ms: 100,
        routes: attachments
            .iter()
            .map(|recorded| PodRoute {
                destination: Cidr::host(recorded.endpoint.addresses[0]),
                link: Some(recorded.endpoint.link.clone()),
            })
            .collect(),
        attachments,
        links,
        ..Inventory::default()
    }
}
