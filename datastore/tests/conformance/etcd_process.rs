//! A real etcd, started by the tests on loopback with a directory of its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// One etcd, killed when it is dropped.
pub struct Etcd {
    dir: TempDir,
    port: u16,
    peer_port: u16,
    extra: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Etcd {
    /// Starts one of one's own.
    pub fn start() -> Arc<Self> {
        Self::start_with(vec![])
    }

    /// Starts one with more flags; `--cert-file` among them means TLS.
    pub fn start_with(extra: Vec<String>) -> Arc<Self> {
        let (port, peer_port) = free_ports();
        let etcd = Self {
            dir: TempDir::new().unwrap(),
            port,
            peer_port,
            extra,
            child: Mutex::new(None),
        };
        etcd.restart();
        Arc::new(etcd)
    }

    /// The one that all harmless tests share; ends with the last of them.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Mutex<std::sync::Weak<Etcd>>> = OnceLock::new();
        let mut shared = SHARED
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let etcd = Self::start();
            *shared = Arc::downgrade(&etcd);
            etcd
        })
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its datastore URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls() { "etcds" } else { "etcd" };
        format!("{scheme}://{}", self.host())
    }

    fn tls(&self) -> bool {
        self.extra
            .iter()
            .any(|flag| flag.starts_with("--cert-file"))
    }

    /// Starts it (again), on the data that it has, and waits until it listens.
    pub fn restart(&self) {
        self.kill();
        let web = if self.tls() { "https" } else { "http" };
        let client = format!("{web}://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        let said = usize::try_from(log.metadata().unwrap().len()).unwrap();
        let child = Command::new("etcd")
            .args(["--name", "test", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("test={peer}")])
            // The disk of a test machine is slow, and its durability is no question here.
            .args(["--unsafe-no-fsync", "--auth-token-ttl", "2"])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|e| {
            panic!(
                "the etcd half of this suite needs the program `etcd` (Debian: etcd-server): {e}"
            )
        });
        *self.child.lock().unwrap() = Some(child);
        // Killed before that, at its very first start, etcd never comes up again.
        let ready = "ready to serve client requests";
        let begun = Instant::now();
        loop {
            let log = std::fs::read(self.log()).unwrap();
            let log = String::from_utf8_lossy(&log[said..]);
            if log.contains(ready) {
                return;
            }
            let patient = begun.elapsed() < Duration::from_secs(30);
            assert!(patient, "etcd does not come up; it says:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(|e| e.into_inner()).take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Where its log is.
    pub fn log(&self) -> std::path::PathBuf {
        self.dir.path().join("log")
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs etcdctl on it and returns what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let web = if self.tls() { "https" } else { "http" };
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &format!("{web}://{}", self.host())])
            .args(args)
            .output()
            .expect("the program etcdctl (Debian: etcd-client)");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert!(output.status.success(), "etcdctl {args:?}: {out}{err}");
        out
    }

    /// Forgets all history up to now, and makes that final.
    pub fn compact(&self) {
        let status = self.ctl(&["endpoint", "status", "-w", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let revision = status[0]["Status"]["header"]["revision"].to_string();
        self.ctl(&["compact", &revision, "--physical"]);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two ports that nobody listens on, below those that the kernel gives to
/// outgoing connections: else one to an etcd that is down could come from its
/// very port, and so reach itself.
fn free_ports() -> (u16, u16) {
    let mut free = std::iter::repeat_with(|| rand::random_range(10_000..32_000))
        .filter(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    (free.next().unwrap(), free.next().unwrap())
}
