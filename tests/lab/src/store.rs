//! The lab's datastore: a file, an etcd or API server of its own, or a way to an etcd outside.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::control::Control;
use crate::daemon::{Daemon, Signal};
use crate::kube::{self, ApiServer};
use crate::options::Datastore;
use crate::privilege::{Privilege, STORE_GID, has_uids, make_dir};
use crate::underlay;
use crate::wait::eventually;

const ETCD_PORT: u16 = 2379;
const DIR: &str = "/run/lab/store";

/// The datastore of a lab.
#[derive(Debug)]
pub struct StoreServer {
    url: String,
    endpoints: Option<String>,
    daemon: Option<Daemon>,
    kube: Option<ApiServer>,
}

impl StoreServer {
    pub(crate) fn start(kind: &Datastore, control: &Arc<Control>) -> Result<Self> {
        match kind {
            Datastore::Sqlite => sqlite(),
            Datastore::Etcd => etcd(),
            Datastore::Relayed(targets) => relayed(targets, control),
            Datastore::Kube {
                programs,
                definitions,
            } => kube(programs, definitions),
        }
    }

    /// The URL under which daemons inside the lab reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `ETCDCTL_ENDPOINTS` has to be inside the lab; `None` with sqlite.
    pub fn etcd_endpoints(&self) -> Option<&str> {
        self.endpoints.as_deref()
    }

    /// The server's process, when the lab started one.
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon
            .as_ref()
            .or(self.kube.as_ref().map(|kube| &kube.server))
    }

    /// The file that says how to reach the API server, with one.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        self.kube.as_ref().map(|_| kube::kubeconfig())
    }

    /// The API server's etcd and itself, with one.
    pub fn kubernetes(&self) -> Option<[&Daemon; 2]> {
        let kube = self.kube.as_ref()?;
        Some([&kube.etcd, &kube.server])
    }

    /// Tells the API server that there is a node; with the others there is nothing to do.
    pub(crate) fn register(&self, node: &str) -> Result<()> {
        match self.kube {
            Some(_) => kube::register(node),
            None => Ok(()),
        }
    }

    /// Kills the lab's etcd without warning.
    ///
    /// # Errors
    /// When the lab did not start one, or it does not run.
    pub fn kill(&self) -> Result<()> {
        self.server()?.kill(Signal::SIGKILL).map(drop)
    }

    /// Starts the lab's etcd again, with its data, and waits until it answers.
    ///
    /// # Errors
    /// When the lab did not start one, or it does not come up.
    pub fn restart(&self) -> Result<()> {
        let server = self.server()?;
        server.start()?;
        await_etcd(server)
    }

    fn server(&self) -> Result<&Daemon> {
        self.daemon
            .as_ref()
            .context("this lab's datastore has no server of its own")
    }
}

fn sqlite() -> Result<StoreServer> {
    let dir = Path::new(DIR);
    let file = dir.join("store.db");
    // Several uids write it: SQLite gives its side files the mode of the main
    // one, and the directory gives them its group.
    make_dir(dir, 0o2770)?;
    std::fs::File::create(&file).with_context(|| file.display().to_string())?;
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o660))?;
    }
    if has_uids()? {
        for path in [dir, &file] {
            std::os::unix::fs::chown(path, None, Some(STORE_GID))
                .with_context(|| path.display().to_string())?;
        }
        make_dir(dir, 0o2770)?;
    }
    Ok(StoreServer {
        url: format!("sqlite:{}", file.display()),
        endpoints: None,
        daemon: None,
        kube: None,
    })
}

fn kube(programs: &Path, definitions: &Path) -> Result<StoreServer> {
    Ok(StoreServer {
        url: "kube".to_owned(),
        endpoints: None,
        daemon: None,
        kube: Some(ApiServer::start(programs, definitions)?),
    })
}

fn etcd() -> Result<StoreServer> {
    let address = underlay::BRIDGE_ADDRESS;
    let client = format!("http://{address}:{ETCD_PORT}");
    let peer = format!("http://{address}:2380");
    let dir = format!("{DIR}/etcd");
    make_dir(Path::new(DIR), 0o755)?;
    Privilege::Plain.own_dir(Path::new(&dir), 0o700)?;
    let args = [
        ("--name", "lab"),
        ("--data-dir", &dir),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("lab={peer}")),
    ];
    let args = args
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
        .collect();
    let daemon = Daemon::new("etcd", "etcd", args, None, Privilege::Plain);
    daemon.start().context("Debian: etcd-server")?;
    await_etcd(&daemon)?;
    Ok(StoreServer {
        url: format!("etcd://{address}:{ETCD_PORT}"),
        endpoints: Some(client),
        daemon: Some(daemon),
        kube: None,
    })
}

/// Waits until etcd serves, not just listens: its health answers that.
fn await_etcd(daemon: &Daemon) -> Result<()> {
    let address = SocketAddr::new(underlay::BRIDGE_ADDRESS.into(), ETCD_PORT);
    eventually(Duration::from_secs(20), || {
        daemon.still_runs()?;
        let answer = crate::http::get_here(address, "/health")?;
        anyhow::ensure!(
            answer.body.contains("\"true\""),
            "etcd is not healthy: {}",
            answer.body.trim()
        );
        Ok(())
    })
    .with_context(|| format!("etcd does not come up:\n{}", daemon.log_tail(10)))
}

/// Listens on the underlay and hands every connection on to `targets`, which are
/// dialled from where the lab was started.
fn relayed(targets: &[String], control: &Arc<Control>) -> Result<StoreServer> {
    let mut hosts = Vec::new();
    for (port, target) in (ETCD_PORT..).step_by(10).zip(targets) {
        // Tried once now, for an error here instead of in every log.
        control.connect(target).with_context(|| {
            format!("--datastore: {target} cannot be reached from where the lab was started")
        })?;
        let listener = TcpListener::bind((underlay::BRIDGE_ADDRESS, port))
            .context("the relay's listener on the underlay")?;
        hosts.push(format!("{}:{port}", underlay::BRIDGE_ADDRESS));
        let (target, control) = (target.clone(), Arc::clone(control));
        std::thread::spawn(move || {
            for inside in listener.incoming().flatten() {
                if let Ok(outside) = control.connect(&target) {
                    std::thread::spawn(move || splice(&inside, &outside));
                }
            }
        });
    }
    Ok(StoreServer {
        url: format!("etcd://{}", hosts.join(",")),
        endpoints: Some(hosts.join(",")),
        daemon: None,
        kube: None,
    })
}

/// Copies both ways until both sides have ended.
fn splice(a: &TcpStream, b: &TcpStream) {
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    };
    let _ = a.set_nodelay(true);
    let _ = b.set_nodelay(true);
    std::thread::scope(|scope| {
        scope.spawn(|| one_way(a, b));
        one_way(b, a);
    });
}
