//! Namespaces, commands in them and a reconciler at work.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use viaduct_agent::backend::{Backend, vxlan};
use viaduct_agent::dataplane::diff::diff;
use viaduct_agent::dataplane::host::suit;
use viaduct_agent::dataplane::kernel::Kernel;
use viaduct_agent::dataplane::objects::{Desired, RouteKind};
use viaduct_agent::dataplane::reconciler::Reconciler;
use viaduct_agent::kernel::{Monitor, NetlinkKernel};
use viaduct_agent::state::{DataplaneReport, Endpoints};
use viaduct_model::MacAddr;

use crate::testing::{Cluster, endpoint};

const INSIDE: &str = "VIADUCT_TEST_NAMESPACE";

/// How long a repair may take before it counts as none: an emulated machine beside others
/// takes seconds for what takes milliseconds. How long it really takes, `make bench` says.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` in this process when it is inside its namespaces already, else
/// starts the one test that called it again inside.
pub(crate) fn in_namespace(test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        ok("ip link set lo up");
        ok("ip link add eth0 type veth peer name wire");
        // No IPv6 addresses of the kernel's own: they come some time later, and a monitor
        // would show them among what an agent does.
        ok("ip link set eth0 addrgenmode none; ip link set wire addrgenmode none");
        ok("ip addr add 192.168.64.1/24 dev eth0");
        ok("ip link set eth0 up; ip link set wire up");
        test();
        return;
    }
    let name = std::thread::current()
        .name()
        .expect("the test's name")
        .to_owned();
    let output = Command::new("unshare")
        .args([
            "-Urnm",
            "--mount-proc=/proc",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
        ])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (util-linux) is needed");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "inside its namespaces the test failed (are user namespaces allowed here?):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a line of shell.
pub(crate) fn run(line: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("a shell");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Runs a line of shell that must succeed.
pub(crate) fn ok(line: &str) {
    let (success, text) = run(line);
    assert!(success, "{line}: {text}");
}

/// What `ip` says.
pub(crate) fn ip(arguments: &str) -> String {
    run(&format!("ip {arguments}")).1
}

/// The small cluster on this namespace's `eth0`.
pub(crate) fn cluster() -> Cluster {
    placed(Cluster::new())
}

/// Puts a cluster on this namespace's `eth0`.
pub(crate) fn placed(mut cluster: Cluster) -> Cluster {
    let shown = ip("-o link show eth0");
    let index = shown.split(':').next().unwrap_or_default();
    cluster.local.underlay.index = index.parse().expect("an index");
    cluster
}

/// A reconciler at work in this namespace.
pub(crate) struct Scene {
    backend: &'static Backend,
    cluster: Cluster,
    pub(crate) peer_mac: MacAddr,
    endpoints: watch::Sender<Endpoints>,
    report: watch::Receiver<DataplaneReport>,
    // Held so that the reconciler's input does not end.
    _state: watch::Sender<Option<viaduct_agent::state::NodeState>>,
    _runtime: Runtime,
}

impl Scene {
    pub(crate) fn start(cluster: Cluster) -> Self {
        Self::with(&vxlan::BACKEND, cluster)
    }

    pub(crate) fn with(backend: &'static Backend, cluster: Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (state, state_seen) = watch::channel(Some(cluster.state()));
        let (endpoints, endpoints_seen) = watch::channel(Endpoints::default());
        let (report, report_seen) = watch::channel(DataplaneReport::default());
        let guard = runtime.enter();
        let reconciler = Reconciler {
            backend,
            state: state_seen,
            endpoints: endpoints_seen,
            hints: Monitor::open().expect("a monitor").spawn(),
            report,
        };
        runtime.spawn(reconciler.run(NetlinkKernel::open().expect("a kernel")));
        drop(guard);
        Self {
            backend,
            cluster,
            peer_mac: MacAddr::for_vtep(&"b".parse().expect("a name")),
            endpoints,
            report: report_seen,
            _state: state,
            _runtime: runtime,
        }
    }

    pub(crate) fn report(&self) -> DataplaneReport {
        self.report.borrow().clone()
    }

    /// Waits until what the reconciler says satisfies `wanted`, and returns it.
    pub(crate) fn reported(&self, wanted: impl Fn(&DataplaneReport) -> bool) -> DataplaneReport {
        let begun = Instant::now();
        loop {
            let report = self.report();
            if wanted(&report) {
                return report;
            }
            assert!(begun.elapsed() < PATIENCE, "{report:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Adds a pod whose link is there but wholly unconfigured.
    pub(crate) fn pod(&self, container: &str, address: &str) {
        let endpoint = endpoint(container, address, true);
        let mut all = BTreeMap::clone(&self.endpoints.borrow());
        let link = endpoint.link.clone();
        all.insert(link.clone(), endpoint);
        self.endpoints.send_replace(Arc::new(all));
        ok(&format!(
            "ip link add {link} type veth peer name eth-{container}; ip link set eth-{container} up"
        ));
    }

    fn rest(&self) -> Vec<String> {
        let mut desired = self
            .backend
            .desired(&self.cluster.state(), &self.endpoints.borrow());
        let actual = NetlinkKernel::open()
            .map(|mut kernel| kernel.dump())
            .expect("a socket")
            .expect("a dump");
        suit(&mut desired, actual.host);
        diff(&desired, &actual)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Waits until nothing differs and the reconciler says so too.
    pub(crate) fn settled(&self) {
        self.healed("the beginning", Instant::now());
        let begun = Instant::now();
        while !self.report().verified {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.report());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing differs; says how long it took since `begun`.
    pub(crate) fn healed(&self, what: &str, begun: Instant) -> Duration {
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return begun.elapsed();
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "after {what}: {rest:?}, {:?}",
                self.report()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What `ip monitor` sees of ours while `work` is done.
    pub(crate) fn monitor_lines(&self, work: impl FnOnce()) -> String {
        let mut child = Command::new("ip")
            .args(["monitor", "link", "address", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip monitor");
        std::thread::sleep(Duration::from_millis(200));
        work();
        std::thread::sleep(Duration::from_millis(200));
        child.kill().expect("our own child");
        let output = child.wait_with_output().expect("its output");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Takes the desired objects away, has iproute2 add them, and says how long that took.
pub(crate) fn by_iproute2(desired: &Desired) -> Duration {
    ok("ip route flush proto 87; ip link del via.vx4");
    ok(
        "ip link add via.vx4 type vxlan id 1 dstport 8472 local 192.168.64.1 dev eth0 nolearning;
        ip link set via.vx4 up; ip addr add 10.64.0.0/32 dev via.vx4",
    );
    let (mut routes, mut fdb) = (String::new(), String::new());
    for ((link, address), mac) in &desired.neighbours {
        let _ = writeln!(
            routes,
            "neigh add {address} lladdr {mac} dev {link} nud permanent"
        );
    }
    for route in &desired.routes {
        let to = route.destination;
        if route.kind == RouteKind::Blackhole {
            let _ = writeln!(routes, "route add blackhole {to} proto 87");
        } else if let Some(via) = route.via {
            let _ = writeln!(
                routes,
                "route add {to} via {via} dev via.vx4 onlink proto 87 src 10.64.0.0"
            );
        }
    }
    for ((link, mac), remote) in &desired.fdb {
        let _ = writeln!(fdb, "fdb add {mac} dev {link} dst {remote} self permanent");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (ip_file, bridge_file) = (directory.path().join("ip"), directory.path().join("bridge"));
    std::fs::write(&ip_file, routes).expect("a file");
    std::fs::write(&bridge_file, fdb).expect("a file");
    let begun = Instant::now();
    ok(&format!("bridge -batch {}", bridge_file.display()));
    ok(&format!("ip -batch {}", ip_file.display()));
    begun.elapsed()
}

/// Looks all the time whether there is a route.
pub(crate) struct Gaps {
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

/// Counts the moments at which the kernel has no route to `destination`.
pub(crate) fn watch_for_gaps(destination: &str) -> Gaps {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let line = format!("route show {destination}");
    let thread = std::thread::spawn(move || {
        let mut gaps = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            gaps += usize::from(ip(&line).is_empty());
        }
        gaps
    });
    Gaps {
        stop,
        thread: Some(thread),
    }
}

impl Gaps {
    pub(crate) fn gaps(&mut self) -> usize {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        thread.join().expect("no panic in it")
    }
}
