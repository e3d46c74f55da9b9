//! The rules, each as plain data: what is given, how blocks leave their nodes, and what
//! follows when the store has forgotten.

mod forgotten;
mod giving;
mod life;

use std::time::Duration;

use viaduct_datastore::{Entry, Update, records};
use viaduct_model::{Claim, Kind, Node, PerFamily, Record};

use super::*;
use crate::status::sentence;

const HOUR: Duration = Duration::from_secs(3600);

/// A cluster as a test writes it down.
struct Scene {
    view: View,
    memory: Memory,
    policy: Policy,
    mono: Duration,
    revision: u64,
}

impl Scene {
    fn new(pools: &[(&str, &str, u8)]) -> Self {
        let mut scene = Self {
            view: View::default(),
            memory: Memory::default(),
            policy: Policy {
                bootstrap: Vec::new(),
                reclaim_after: 24 * HOUR,
                quarantine: HOUR,
                listen: Duration::ZERO,
                restored: false,
                refresh: Duration::from_secs(60),
                node_cidrs: NodeCidrs::Off,
            },
            mono: HOUR,
            revision: 0,
        };
        for kind in Kind::ALL {
            scene.view.update(kind, Update::Reset(vec![]), scene.mono);
        }
        for (name, cidr, size) in pools {
            scene.put(name, &Pool::new(cidr.parse().unwrap(), Some(*size)));
        }
        scene
    }

    fn put<T: Record>(&mut self, name: &str, record: &T) {
        let value = records::encode(name, record).unwrap();
        self.put_bytes(T::KIND, name, value);
    }

    fn put_bytes(&mut self, kind: Kind, name: &str, value: Vec<u8>) {
        self.revision += 1;
        let entry = Entry {
            name: name.into(),
            value,
            version: Version(self.revision.to_string()),
        };
        self.view.update(kind, Update::Put(entry), self.mono);
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        self.view
            .update(kind, Update::Delete(name.into()), self.mono);
    }

    fn node(&mut self, name: &str) {
        self.put(name, &node(&[], &[]));
        self.claim(name, 1, 0, &[], &[]);
    }

    /// The pool's status remembers the generation of freed blocks.
    fn remembers(&mut self, name: &str, generation: u64) {
        let mut pool = self.view.pools[&name.parse().unwrap()].record.clone();
        pool.status = Some(viaduct_model::PoolStatus {
            exhausted_since: None,
            blocks_total: 0,
            blocks_free: 0,
            generation,
        });
        self.put(name, &pool);
    }

    /// A claim of a node that wants one block.
    fn says(&mut self, name: &str, change: impl FnOnce(&mut Claim)) {
        self.claim(name, 1, 0, &[], &[]);
        let mut claim = self.view.claims[&name.parse().unwrap()].record.clone();
        change(&mut claim);
        self.put(name, &claim);
    }

    fn claim(&mut self, name: &str, v4: u32, v6: u32, gives: &[&str], reports: &[&str]) {
        let claim = Claim {
            incarnation: "i".into(),
            host: "h".into(),
            agent_version: "0".into(),
            wants: PerFamily { v4, v6 },
            gives: gives
                .iter()
                .map(|c| (c.parse::<Cidr>().unwrap().record_name(), 1))
                .collect(),
            holds: BTreeMap::new(),
            renews: BTreeMap::new(),
            ended: 0,
            blocks: reports
                .iter()
                .map(|c| (c.parse::<Cidr>().unwrap().record_name(), Default::default()))
                .collect(),
            conditions: Vec::new(),
            extra: BTreeMap::new(),
        };
        self.put(name, &claim);
    }

    fn block(&mut self, cidr: &str, node: &str, state: BlockState) {
        let cidr: Cidr = cidr.parse().unwrap();
        let block = Block {
            state,
            ..Block::new(cidr, "p".parse().unwrap(), node.parse().unwrap(), 1)
        };
        self.put(&cidr.record_name(), &block);
    }

    fn decide(&mut self) -> Decision {
        self.memory.observe(&self.view, self.mono);
        let now = Now {
            mono: self.mono,
            wall: "2026-01-01T00:00:00Z".into(),
        };
        decide(&self.view, &self.memory, &self.policy, &now)
    }

    /// What is decided, in short, pool statuses left out.
    fn actions(&mut self) -> Vec<String> {
        self.decide().actions.iter().filter_map(short).collect()
    }
}

fn node(labels: &[(&str, &str)], networks: &[&str]) -> Node {
    let mut node: Node = serde_json::from_str(
        r#"{"incarnation":"i","underlay":{"v4":"192.0.2.5"},"mtu":1450,
            "backend":{"type":"vxlan","vni":1,"port":8472,"vtepMac":"02:00:5e:00:53:01"}}"#,
    )
    .unwrap();
    node.labels = labels
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    node.underlay_networks = networks.iter().map(|n| n.parse().unwrap()).collect();
    node
}

fn short(action: &Action) -> Option<String> {
    match action {
        Action::CreatePool(name, pool) => Some(format!("pool {name} {}", pool.cidr)),
        Action::CreateBlock(b) => Some(format!("{} {} for {}", b.cidr, b.pool, b.node)),
        Action::SetBlockState {
            block: b, guard, ..
        } => Some(format!("{} {} {guard:?}", b.cidr, b.state)),
        Action::DeleteBlock {
            block: b, guard, ..
        } => Some(format!("{} freed {guard:?}", b.cidr)),
        Action::RestoreBlock { block: b, .. } => Some(format!(
            "{} restored to {} as {}",
            b.cidr, b.node, b.generation
        )),
        Action::SetPoolStatus { .. } => None,
    }
}

const A: &str = "10.0.0.0/26";
const B: &str = "10.0.0.64/26";

fn key(cidr: &str) -> String {
    cidr.parse::<Cidr>().unwrap().record_name()
}
