//! Whole controllers on a real store: many nodes at once, two leaders, a full pool,
//! a leader that goes away.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use viaduct_controller::control::Control;
use viaduct_controller::decide::Policy;
use viaduct_controller::metrics::Metrics;
use viaduct_controller::status::Status;
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{Records, StoreOptions};
use viaduct_model::{Block, BlockState, Cidr, Claim, Kind, Node, PerFamily, Pool};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    dir: tempfile::TempDir,
    records: Records,
}

struct Running {
    stop: watch::Sender<bool>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let records = Records::new(store);
        Self { dir, records }
    }

    /// Starts a controller with a store of its own, as another process would have.
    async fn controller(&self, pool: Option<&str>, identity: Option<&str>) -> Running {
        let bootstrap = pool
            .map(|cidr| {
                let pool = Pool::new(cidr.parse().unwrap(), Some(26));
                ("default".parse().unwrap(), pool)
            })
            .into_iter()
            .collect();
        let (status, told) = watch::channel(Status::default());
        let (stop, stopped) = watch::channel(false);
        let control = Control {
            store: open(&self.dir).await,
            policy: Policy {
                bootstrap,
                reclaim_after: Duration::from_secs(3600),
                quarantine: Duration::ZERO,
                listen: Duration::ZERO,
                restored: false,
                refresh: Duration::from_secs(60),
                node_cidrs: viaduct_datastore::NodeCidrs::Off,
            },
            identity: identity.map(str::to_owned),
            status,
            metrics: Arc::new(Metrics::new()),
            started: Instant::now(),
        };
        Running {
            stop,
            status: told,
            task: tokio::spawn(control.run(stopped)),
        }
    }

    /// What a node's agent writes when it starts.
    async fn register(&self, name: &str) {
        let node: Node = serde_json::from_str(
            r#"{"incarnation":"i","underlay":{"v4":"192.0.2.5"},"mtu":1450,
                "backend":{"type":"vxlan","vni":1,"port":8472,"vtepMac":"02:00:5e:00:53:01"}}"#,
        )
        .unwrap();
        self.records.create(name, &node, None).await.unwrap();
        let claim = Claim {
            incarnation: "i".into(),
            host: "h".into(),
            agent_version: "0".into(),
            wants: PerFamily { v4: 1, v6: 0 },
            gives: BTreeMap::new(),
            holds: BTreeMap::new(),
            renews: BTreeMap::new(),
            ended: 0,
            blocks: BTreeMap::new(),
            conditions: Vec::new(),
            extra: BTreeMap::new(),
        };
        self.records.create(name, &claim, None).await.unwrap();
    }

    async fn remove(&self, name: &str) {
        for kind in [Kind::Claim, Kind::Node] {
            let store = self.records.store();
            let entry = store.get(kind, name).await.unwrap().unwrap();
            store.delete(kind, name, &entry.version).await.unwrap();
        }
    }

    async fn blocks(&self) -> Vec<Block> {
        let (blocks, bad) = self.records.list::<Block>().await.unwrap();
        assert!(bad.is_empty(), "{bad:?}");
        blocks.into_iter().map(|named| named.record).collect()
    }

    async fn owners(&self) -> BTreeSet<String> {
        let blocks = self.blocks().await;
        blocks
            .iter()
            .filter(|block| block.state == BlockState::Active)
            .map(|block| block.node.to_string())
            .collect()
    }

    async fn wait_for_owners(&self, nodes: &BTreeSet<String>) {
        until(async || self.owners().await == *nodes).await;
    }

    async fn pool(&self, name: &str) -> Pool {
        let named = self.records.get::<Pool>(name).await.unwrap();
        named.unwrap().record
    }
}

async fn open(dir: &tempfile::TempDir) -> SharedStore {
    let url = format!("sqlite:{}", dir.path().join("store.db").display());
    let options = StoreOptions {
        url,
        ..StoreOptions::default()
    };
    viaduct_datastore::open(&options).await.unwrap()
}

async fn until(mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < PATIENCE, "it does not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Running {
    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

fn names(n: usize) -> BTreeSet<String> {
    (0..n).map(|n| format!("node-{n}")).collect()
}

/// Registers everybody at once and waits until everybody has a block.
async fn stampede(cluster: &Arc<Cluster>, nodes: &BTreeSet<String>) -> Duration {
    let begun = Instant::now();
    let agents: Vec<_> = nodes
        .iter()
        .cloned()
        .map(|name| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.register(&name).await })
        })
        .collect();
    for agent in agents {
        agent.await.unwrap();
    }
    cluster.wait_for_owners(nodes).await;
    begun.elapsed()
}

async fn exactly_one_each(cluster: &Cluster, nodes: &BTreeSet<String>) {
    let blocks = cluster.blocks().await;
    assert_eq!(blocks.len(), nodes.len());
    let owners: BTreeSet<String> = blocks.iter().map(|b| b.node.to_string()).collect();
    assert_eq!(&owners, nodes);
    let mut cidrs: Vec<Cidr> = blocks.iter().map(|b| b.cidr).collect();
    cidrs.sort();
    assert!(cidrs.windows(2).all(|pair| !pair[0].overlaps(&pair[1])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_leaders_give_500_nodes_exactly_one_block_each() {
    let cluster = Arc::new(Cluster::new().await);
    let one = cluster.controller(Some("10.64.0.0/16"), None).await;
    let two = cluster.controller(Some("10.64.0.0/16"), None).await;
    let nodes = names(500);
    let took = stampede(&cluster, &nodes).await;
    println!("500 nodes, two unelected controllers: {took:?}");
    // Both have seen all of it, and neither has more to do.
    for controller in [&one, &two] {
        let mut status = controller.status.clone();
        let all = |s: &Status| s.blocks.get(&BlockState::Active) == Some(&500);
        tokio::time::timeout(PATIENCE, status.wait_for(all))
            .await
            .unwrap()
            .unwrap();
    }
    exactly_one_each(&cluster, &nodes).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_elected_controllers_one_acts_and_the_other_takes_over() {
    let cluster = Arc::new(Cluster::new().await);
    let first = cluster
        .controller(Some("10.64.0.0/16"), Some("first"))
        .await;
    let leads = |s: &Status| s.leads;
    first.status.clone().wait_for(leads).await.unwrap();
    let second = cluster
        .controller(Some("10.64.0.0/16"), Some("second"))
        .await;
    let nodes = names(100);
    stampede(&cluster, &nodes).await;
    assert!(!second.status.borrow().leads);
    first.stop().await;
    second.status.clone().wait_for(leads).await.unwrap();
    cluster.register("late").await;
    let mut all = nodes;
    all.insert("late".into());
    cluster.wait_for_owners(&all).await;
    exactly_one_each(&cluster, &all).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_is_seen_and_resolves_when_a_block_is_freed_or_a_pool_added() {
    let cluster = Arc::new(Cluster::new().await);
    let controller = cluster.controller(Some("10.64.0.0/25"), None).await;
    for name in ["a", "b", "c", "d"] {
        cluster.register(name).await;
    }
    let waiting = |n: usize| move |s: &Status| s.waiting.len() == n;
    let mut status = controller.status.clone();
    status.wait_for(waiting(2)).await.unwrap();
    until(async || {
        let status = cluster.pool("default").await.status;
        status.is_some_and(|s| s.exhausted_since.is_some() && s.blocks_free == 0)
    })
    .await;
    // A removed node's block goes through quarantine to the next that waits.
    let owner = cluster.owners().await.into_iter().next().unwrap();
    cluster.remove(&owner).await;
    status.wait_for(waiting(1)).await.unwrap();
    let pool = Pool::new("10.65.0.0/24".parse().unwrap(), None);
    cluster.records.create("more", &pool, None).await.unwrap();
    status.wait_for(waiting(0)).await.unwrap();
    until(async || {
        let status = cluster.pool("default").await.status;
        status.is_some_and(|s| s.exhausted_since.is_none())
    })
    .await;
    assert_eq!(cluster.owners().await.len(), 3);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_rubbish_are_told_and_all_others_work() {
    let cluster = Arc::new(Cluster::new().await);
    let store = cluster.records.store();
    for (kind, name, value) in [
        (Kind::Block, "10.64.0.0-26", &b"not JSON"[..]),
        (Kind::Claim, "odd", br#"{"wants":"everything"}"#),
        (Kind::Node, "odd", b""),
        (
            Kind::Pool,
            "odd",
            br#"{"cidr":"10.64.0.0/24","blockSize":8}"#,
        ),
    ] {
        store.create(kind, name, value, None).await.unwrap();
    }
    let good = Pool::new("10.64.0.0/16".parse().unwrap(), None);
    cluster.records.create("good", &good, None).await.unwrap();
    cluster.register("a").await;
    let controller = cluster.controller(Some("10.99.0.0/16"), None).await;
    until(async || {
        let (blocks, _) = cluster.records.list::<Block>().await.unwrap();
        blocks
            .iter()
            .any(|b| b.record.cidr.to_string() == "10.64.0.64/26")
    })
    .await;
    assert_eq!(controller.status.borrow().problems.len(), 4);
    controller.stop().await;
}
