//! An API server of Kubernetes as the lab's datastore: an etcd, the API server before it,
//! and nothing else of Kubernetes.
//!
//! Started by [`StoreServer`](crate::StoreServer) for [`Datastore::Kube`](crate::Datastore).
//! Nobody deletes what belonged to a Node here, and nobody runs pods: that is what
//! `tests/kube` has a whole cluster for. Everybody is admin.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::daemon::Daemon;
use crate::privilege::{Privilege, make_dir};
use crate::underlay;
use crate::wait::eventually;

/// Where the lab shows the programs, which may lie where daemons' uids may not look.
const PROGRAMS: &str = "/run/lab/kube";
const DIR: &str = "/run/lab/store";
const PORT: u16 = 6443;
/// The user whom everything is allowed.
const TOKEN: &str = "admin-token";
/// A cold API server on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An API server and its etcd.
#[derive(Debug)]
pub(crate) struct ApiServer {
    pub(crate) etcd: Daemon,
    pub(crate) server: Daemon,
}

impl ApiServer {
    /// Starts both and installs the definitions of Viaduct's kinds.
    pub(crate) fn start(programs: &Path, definitions: &Path) -> Result<Self> {
        make_dir(Path::new(PROGRAMS), 0o755)?;
        mount(
            Some(programs),
            PROGRAMS,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("showing {} inside the lab", programs.display()))?;
        make_dir(Path::new(DIR), 0o755)?;
        for own in ["etcd", "api"] {
            Privilege::Plain.own_dir(&path(own), 0o700)?;
        }
        certificates()?;
        std::fs::write(kubeconfig(), kubeconfig_text())?;
        let parts = Self {
            etcd: etcd(),
            server: api_server(),
        };
        parts.etcd.start()?;
        parts.server.start()?;
        parts.await_ready()?;
        kubectl(&["create", "-k", &definitions.display().to_string()], "")?;
        eventually(TIMEOUT, || {
            kubectl(
                &["get", "blockclaims,addressblocks,addresspools,nodenetworks"],
                "",
            )
            .map(drop)
        })?;
        Ok(parts)
    }

    /// Waits until the API server says that it serves.
    pub(crate) fn await_ready(&self) -> Result<()> {
        eventually(TIMEOUT, || {
            self.etcd.still_runs()?;
            self.server.still_runs()?;
            kubectl(&["get", "--raw", "/readyz"], "").map(drop)
        })
        .with_context(|| {
            format!(
                "the API server does not come up:\n{}",
                self.server.log_tail(10)
            )
        })
    }
}

/// The file that says how to reach it.
pub(crate) fn kubeconfig() -> PathBuf {
    path("kubeconfig")
}

/// Creates the Node object that a node's records belong to.
pub(crate) fn register(node: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
    kubectl(&["create", "-f", "-"], &object.to_string()).map(drop)
}

fn kubectl(args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(Path::new(PROGRAMS).join("kubectl"))
        .arg("--kubeconfig")
        .arg(kubeconfig())
        .args(args)
        .env("HOME", DIR)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn etcd() -> Daemon {
    let address = underlay::BRIDGE_ADDRESS;
    let client = format!("http://{address}:2379");
    let peer = format!("http://{address}:2380");
    let args = [
        "--name=lab".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--data-dir={DIR}/etcd"),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=lab={peer}"),
    ];
    daemon("etcd", args.into())
}

fn api_server() -> Daemon {
    let address = underlay::BRIDGE_ADDRESS;
    let args = [
        format!("--etcd-servers=http://{address}:2379"),
        format!("--secure-port={PORT}"),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        "--anonymous-auth=false".to_owned(),
        format!("--token-auth-file={DIR}/tokens.csv"),
        format!("--cert-dir={DIR}/api"),
        format!("--tls-cert-file={DIR}/server.pem"),
        format!("--tls-private-key-file={DIR}/server.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={DIR}/sa.key"),
        format!("--service-account-signing-key-file={DIR}/sa.key"),
        "--shutdown-delay-duration=0s".to_owned(),
        "--profiling=false".to_owned(),
    ];
    daemon("kube-apiserver", args.into())
}

fn daemon(name: &str, args: Vec<String>) -> Daemon {
    let program = Path::new(PROGRAMS).join(name);
    Daemon::new(name, program, args, None, Privilege::Plain)
}

fn kubeconfig_text() -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "contexts": [{"name": "lab", "context": {
            "cluster": "lab", "user": "admin", "namespace": "kube-system",
        }}],
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{}:{PORT}", underlay::BRIDGE_ADDRESS),
            "certificate-authority": path("ca.pem"),
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
    })
    .to_string()
}

fn certificates() -> Result<()> {
    std::fs::write(
        path("tokens.csv"),
        format!("{TOKEN},admin,1,system:masters\n"),
    )?;
    let extensions = format!(
        "subjectAltName=IP:{}\nextendedKeyUsage=serverAuth\n",
        underlay::BRIDGE_ADDRESS
    );
    std::fs::write(path("extensions"), extensions)?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -days 2 -subj /CN=lab -keyout ca.key -out ca.pem"
    ))?;
    openssl(&format!(
        "req -new {key} -subj /CN=server -keyout server.key -out server.csr"
    ))?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out server.pem",
    )?;
    openssl("genrsa -out sa.key 2048")?;
    // openssl keeps keys to whoever made them, which is not whom the API server runs as.
    for key in ["server.key", "sa.key"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path(key), std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn openssl(args: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(DIR)
        .output()
        .context("the program openssl (Debian: openssl)")?;
    ensure!(
        output.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
