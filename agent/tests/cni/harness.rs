//! A node without datastore and reconciler, pods that are processes, and a client
//! that does what the plugin does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;
use tokio::sync::watch;
use viaduct_agent::cni::{self, CniHandle, CniOptions};
use viaduct_agent::dataplane::diff::diff;
use viaduct_agent::dataplane::endpoints::desire;
use viaduct_agent::dataplane::kernel::Kernel;
use viaduct_agent::dataplane::objects::Desired;
use viaduct_agent::kernel::NetlinkKernel;
use viaduct_agent::state::{DataplaneReport, LocalNode, NodeState, UnderlayLink};
use viaduct_cni::frame::{self, HEADER};
use viaduct_cni::previous::Previous;
use viaduct_cni::protocol::{NetworkRequest, NetworkVerb, PROTOCOL, Reply, Request, Verb, Wired};
use viaduct_cni::result;
use viaduct_cni::version::CniVersion;
use viaduct_model::{AttachmentId, Block, Cidr, ClusterView};

/// Runs this one test again as root of a user and network namespace. True in that
/// inner run.
pub(crate) fn inside(test: &str) -> bool {
    const MARK: &str = "VIADUCT_TEST_INSIDE";
    if std::env::var_os(MARK).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        // What the reconciler would do: the node's own address.
        run("ip", &["address", "add", "10.64.0.0/32", "dev", "lo"]);
        return true;
    }
    let status = Command::new("unshare")
        .args(["-Urnm", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
    false
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs a program and returns what it prints; its failure is the test's.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names of our links on the host.
pub(crate) fn host_links() -> Vec<String> {
    run("ip", &["-o", "link"])
        .lines()
        .filter_map(|line| line.split([':', '@']).nth(1))
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("via"))
        .collect()
}

/// Waits for what the kernel or a background task does a moment later.
pub(crate) async fn eventually(what: &str, check: impl Fn() -> bool) {
    for _ in 0..500 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub(crate) struct Node {
    pub(crate) run_dir: PathBuf,
    pub(crate) handle: CniHandle,
    pub(crate) state: watch::Sender<Option<NodeState>>,
    pub(crate) report: watch::Sender<DataplaneReport>,
    _directory: Option<tempfile::TempDir>,
}

impl Node {
    /// A node that is ready, with a block of 256 addresses.
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut node = Self::at(directory.path()).await;
        node._directory = Some(directory);
        node
    }

    /// The same on a run directory that exists.
    pub(crate) async fn at(run_dir: &Path) -> Self {
        Self::with(CniOptions::new(run_dir)).await
    }

    /// The same with options of its own.
    pub(crate) async fn with(options: CniOptions) -> Self {
        let run_dir = options.run_dir.clone();
        let (state, state_in) = watch::channel(Some(node_state()));
        let (report, report_in) = watch::channel(DataplaneReport {
            can_wire: true,
            ..DataplaneReport::default()
        });
        let handle = cni::start(options, state_in, report_in).await.unwrap();
        Self {
            run_dir,
            handle,
            state,
            report,
            _directory: None,
        }
    }

    pub(crate) fn used(&self) -> u32 {
        self.handle
            .usage
            .borrow()
            .blocks
            .values()
            .map(|usage| usage.used)
            .sum()
    }

    pub(crate) fn records(&self) -> usize {
        std::fs::read_dir(self.run_dir.join("endpoints"))
            .unwrap()
            .count()
    }

    /// Nothing is left: neither link, address nor record.
    pub(crate) async fn is_clean(&self) {
        eventually("no link is left", || host_links().is_empty()).await;
        eventually("no endpoint is left", || {
            self.handle.endpoints.borrow().is_empty()
        })
        .await;
        assert_eq!(self.used(), 0);
        assert_eq!(self.records(), 0);
        assert_eq!(run("ip", &["route", "show", "proto", "87"]), "");
    }

    /// The reconciler would find nothing to do about the endpoints.
    pub(crate) fn is_as_desired(&self) {
        let mut desired = Desired::default();
        desire(&self.handle.endpoints.borrow(), &mut desired);
        let actual = NetlinkKernel::open().unwrap().dump().unwrap();
        assert_eq!(diff(&desired, &actual), Vec::new());
    }

    pub(crate) async fn ask(&self, request: impl Serialize, descriptors: Vec<OwnedFd>) -> Reply {
        let socket = self.run_dir.join("cni.sock");
        let frame = frame::encode(&request).unwrap();
        tokio::task::spawn_blocking(move || {
            let stream = UnixStream::connect(socket).unwrap();
            let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            send(&stream, &frame, &fds);
            reply(stream).unwrap()
        })
        .await
        .unwrap()
    }

    pub(crate) async fn add(&self, pod: &Pod) -> Reply {
        self.ask(
            request(Verb::Add, pod.name(), &pod.netns()),
            pod.descriptors(),
        )
        .await
    }

    /// CHECK of a pod's interface against the result of its ADD.
    pub(crate) async fn check(&self, pod: &Pod, ifname: &str, told: &Wired) -> Reply {
        let id = AttachmentId::new(pod.name(), ifname).unwrap();
        let netns = pod.netns();
        let printed = result::add_result(CniVersion::NEWEST, told, ifname, &netns, None).unwrap();
        let printed = serde_json::from_str(&printed).unwrap();
        let request = Request {
            previous: Some(Previous::of(&printed, &id, &netns).unwrap()),
            id,
            ..request(Verb::Check, pod.name(), &netns)
        };
        self.ask(request, pod.descriptors()).await
    }

    pub(crate) async fn gc(&self, network: &str, keep: &[&str]) -> Reply {
        let request = NetworkRequest {
            protocol: PROTOCOL,
            verb: NetworkVerb::Gc,
            network: network.into(),
            keep: keep.iter().map(|name| id(name).link_name()).collect(),
        };
        self.ask(request, Vec::new()).await
    }

    pub(crate) async fn status(&self) -> Reply {
        let request = NetworkRequest {
            protocol: PROTOCOL,
            verb: NetworkVerb::Status,
            network: "viaduct".into(),
            keep: Vec::new(),
        };
        self.ask(request, Vec::new()).await
    }

    pub(crate) async fn del(&self, name: &str) {
        let reply = self.ask(request(Verb::Del, name, ""), Vec::new()).await;
        assert_eq!(reply, Reply::Gone);
    }
}

/// Asks an agent that may be away or die over it; then there is no reply.
pub(crate) async fn try_ask(
    run_dir: &Path,
    request: &Request,
    descriptors: Vec<OwnedFd>,
) -> Option<Reply> {
    let frame = frame::encode(request).unwrap();
    let socket = run_dir.join("cni.sock");
    tokio::task::spawn_blocking(move || {
        let stream = UnixStream::connect(socket).ok()?;
        let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        frame::send_with_descriptors(&stream, &frame, &fds).ok()?;
        reply(stream)
    })
    .await
    .unwrap()
}

pub(crate) fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let sent = frame::send_with_descriptors(stream, bytes, descriptors).unwrap();
    assert_eq!(sent, bytes.len());
}

/// The reply, or nothing when the connection ends without one.
pub(crate) fn reply(mut stream: UnixStream) -> Option<Reply> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).ok()?;
    let mut payload = vec![0; frame::payload_length(header).unwrap()];
    stream.read_exact(&mut payload).ok()?;
    Some(frame::decode(&payload).unwrap())
}

pub(crate) fn wired(reply: Reply) -> Wired {
    match reply {
        Reply::Wired(wired) => wired,
        other => panic!("not wired: {other:?}"),
    }
}

/// The message of a refusal with this code.
pub(crate) fn refusal(reply: Reply, code: u32) -> String {
    match reply {
        Reply::Refused(error) if error.code == code => error.msg,
        other => panic!("not refused with {code}: {other:?}"),
    }
}

pub(crate) fn code(reply: &Reply) -> u32 {
    match reply {
        Reply::Refused(error) => error.code,
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn request(verb: Verb, container: &str, netns: &str) -> Request {
    Request {
        protocol: PROTOCOL,
        verb,
        id: id(container),
        network: "viaduct".into(),
        netns: netns.into(),
        pod: None,
        wishes: Default::default(),
        previous: None,
    }
}

pub(crate) fn id(container: &str) -> AttachmentId {
    AttachmentId::new(container, "eth0").unwrap()
}

pub(crate) fn node_state() -> NodeState {
    let cidr: Cidr = "10.64.0.0/24".parse().unwrap();
    let name = "n1".parse().unwrap();
    let block = Block::new(cidr, "default".parse().unwrap(), "n1".parse().unwrap(), 1);
    NodeState {
        local: LocalNode {
            name,
            underlay: UnderlayLink {
                name: "eth0".into(),
                index: 2,
                address: [192, 0, 2, 1].into(),
                public_address: [192, 0, 2, 1].into(),
                networks: Vec::new(),
                mac: None,
                mtu: 1500,
            },
            carrier: viaduct_model::Backend::HostGw,
            direct_routing: false,
            masquerade: false,
            mtu: 1450,
            overlay: Some([10, 64, 0, 0].into()),
        },
        view: Arc::new(ClusterView {
            blocks: BTreeMap::from([(cidr, block.into())]),
            ..ClusterView::default()
        }),
        on_link: Default::default(),
        lost: Default::default(),
        disputed: Default::default(),
    }
}

/// A process in a network namespace of its own, killed with the test.
pub(crate) struct Pod {
    name: String,
    child: Child,
}

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo up; exec sleep 300"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.take().unwrap().read_exact(&mut up).unwrap();
        Self {
            name: name.to_owned(),
            child,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.child.id())
    }

    /// What the plugin passes.
    pub(crate) fn descriptors(&self) -> Vec<OwnedFd> {
        let namespace: OwnedFd = File::open(self.netns()).unwrap().into();
        let inside = namespace.try_clone().unwrap();
        let rtnetlink = std::thread::spawn(move || {
            move_into_link_name_space(inside.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            rtnetlink()
        })
        .join()
        .unwrap();
        vec![namespace, rtnetlink]
    }

    pub(crate) fn run(&self, args: &[&str]) -> String {
        let net = format!("--net={}", self.netns());
        run("nsenter", &[&[net.as_str(), "--"], args].concat())
    }
}

/// An rtnetlink socket of this thread's namespace.
pub(crate) fn rtnetlink() -> OwnedFd {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One ping of the host to an address, answered within a second.
pub(crate) fn ping(address: IpAddr) {
    run("ping", &["-c", "1", "-W", "1", &address.to_string()]);
}
