//! A real API server on a real etcd, started by the tests on loopback.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use kube::core::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use viaduct_datastore::StoreOptions;

/// The user whom everything is allowed.
const ADMIN: &str = "admin-token";

/// An API server and its etcd, killed when it is dropped.
pub struct ApiServer {
    dir: TempDir,
    port: u16,
    etcd_ports: (u16, u16),
    etcd: Mutex<Option<Child>>,
    child: Mutex<Option<Child>>,
}

impl ApiServer {
    /// Starts one of one's own, with the definitions installed.
    pub async fn start() -> Arc<Self> {
        let server = Self::bare().await;
        server.install().await;
        server
    }

    /// The same without the definitions.
    pub async fn bare() -> Arc<Self> {
        let server = Self {
            dir: TempDir::new().unwrap(),
            port: free_port(),
            etcd_ports: (free_port(), free_port()),
            etcd: Mutex::default(),
            child: Mutex::default(),
        };
        server.certificates();
        server.kubeconfig("admin", ADMIN, server.port);
        server.start_etcd();
        server.restart().await;
        Arc::new(server)
    }

    /// The one that all harmless tests share; ends with the last of them.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceLock<tokio::sync::Mutex<Weak<ApiServer>>> = OnceLock::new();
        let mut shared = SHARED
            .get_or_init(|| tokio::sync::Mutex::new(Weak::new()))
            .lock()
            .await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Self::start().await;
        *shared = Arc::downgrade(&server);
        server
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How a store of it is opened by one whom everything is allowed.
    pub fn options(&self) -> StoreOptions {
        options(self.path("admin.conf"))
    }

    /// The same through another port.
    pub fn options_through(&self, host: &str) -> StoreOptions {
        let port = host.rsplit_once(':').unwrap().1.parse().unwrap();
        self.kubeconfig(&format!("through-{port}"), ADMIN, port)
    }

    /// Writes a kubeconfig with this token, read from a file beside it.
    pub fn kubeconfig(&self, name: &str, token: &str, port: u16) -> StoreOptions {
        std::fs::write(self.path(&format!("{name}.token")), token).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "kube-system"}}],
            "clusters": [{"name": "k", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": self.path("ca.pem"),
            }}],
            "users": [{"name": "u", "user": {"tokenFile": self.path(&format!("{name}.token"))}}],
        });
        let path = self.path(&format!("{name}.conf"));
        std::fs::write(&path, config.to_string()).unwrap();
        options(path)
    }

    /// A file of its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client whom everything is allowed.
    pub async fn client(&self) -> kube::Client {
        let file = kube::config::Kubeconfig::read_from(self.path("admin.conf")).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await;
        kube::Client::try_from(config.unwrap()).unwrap()
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, kube::Error> {
        let body = object.to_string().into_bytes();
        let request = Request::new(path).create(&Default::default(), body);
        self.client().await.request(request.unwrap()).await
    }

    /// Creates a Node, unless there is one.
    pub async fn node(&self, name: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        match self.create("/api/v1/nodes", &node).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(e) => panic!("{e}"),
        }
    }

    /// Installs the definitions in `deploy/crds` and waits until they are served.
    pub async fn install(&self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for file in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let crd: Value = serde_saphyr::from_str(&text).unwrap();
            if crd["kind"] == "CustomResourceDefinition" {
                self.create(path, &crd).await.unwrap();
            }
        }
        let client = self.client().await;
        for plural in [
            "addresspools",
            "addressblocks",
            "nodenetworks",
            "blockclaims",
        ] {
            let begun = Instant::now();
            loop {
                let list = Request::new(format!("/apis/viaduct.dev/v1alpha1/{plural}"))
                    .list(&Default::default())
                    .unwrap();
                match client.request::<Value>(list).await {
                    Ok(_) => break,
                    Err(e) => assert!(begun.elapsed().as_secs() < 30, "{plural}: {e}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// kill -9 of the API server; its etcd stays.
    pub fn kill(&self) {
        stop(&self.child);
    }

    /// Starts the API server (again) and waits until it is ready.
    pub async fn restart(&self) {
        self.kill();
        let log = self.log("apiserver.log");
        let child = program("kube-apiserver")
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.etcd_ports.0
            ))
            .arg(format!("--secure-port={}", self.port))
            .args(["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"])
            .args([
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.96.0.0/16",
            ])
            .args(["--authorization-mode=RBAC", "--anonymous-auth=false"])
            .arg(format!("--token-auth-file={}", self.text("tokens.csv")))
            .arg(format!("--cert-dir={}", self.text("certs")))
            .arg(format!("--tls-cert-file={}", self.text("server.pem")))
            .arg(format!(
                "--tls-private-key-file={}",
                self.text("server.key")
            ))
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(format!(
                "--service-account-key-file={}",
                self.text("sa.key")
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                self.text("sa.key")
            ))
            .args(["--shutdown-delay-duration=0s", "--profiling=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.child.lock().unwrap() = Some(child);
        let begun = Instant::now();
        loop {
            let ready = kube::core::Request::new("/readyz").get("etcd", &Default::default());
            let client = self.client().await;
            if client.request_text(ready.unwrap()).await.is_ok() {
                let all = http::Request::get("/readyz").body(vec![]).unwrap();
                if client.request_text(all).await.is_ok() {
                    return;
                }
            }
            assert!(
                begun.elapsed() < Duration::from_secs(90),
                "the API server does not come up; see its log:\n{}",
                tail(&self.path("apiserver.log"))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes etcd forget its history, as the API server does every five minutes.
    pub async fn compact(&self) {
        let mut etcd = etcd_client::Client::connect([self.etcd_url()], None)
            .await
            .unwrap();
        let now = etcd.get("x", None).await.unwrap();
        let revision = now.header().unwrap().revision();
        etcd.compact(revision, None).await.unwrap();
    }

    /// Stops the etcd, forgets all of it, and starts another.
    pub fn forget_everything(&self) {
        stop(&self.etcd);
        std::fs::remove_dir_all(self.path("etcd")).unwrap();
        self.start_etcd();
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_ports.0)
    }

    fn start_etcd(&self) {
        let log = self.log("etcd.log");
        let peer = format!("http://127.0.0.1:{}", self.etcd_ports.1);
        let child = program("etcd")
            .args(["--name=test", "--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--data-dir={}", self.text("etcd")))
            .arg(format!("--listen-client-urls={}", self.etcd_url()))
            .arg(format!("--advertise-client-urls={}", self.etcd_url()))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=test={peer}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.etcd.lock().unwrap() = Some(child);
    }

    fn certificates(&self) {
        let tokens = format!("{ADMIN},admin,1,system:masters\nnobody-token,nobody,2\n");
        std::fs::write(self.path("tokens.csv"), tokens).unwrap();
        let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n";
        std::fs::write(self.path("extensions"), extensions).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for authority in ["ca", "stranger"] {
            self.openssl(&format!(
                "req -x509 {key} -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ));
        }
        self.openssl(&format!(
            "req -new {key} -subj /CN=server -keyout server.key -out server.csr"
        ));
        self.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out server.pem",
        );
        self.openssl("genrsa -out sa.key 2048");
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(self.dir.path())
            .output()
            .expect("the program openssl (Debian: openssl)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {args}: {said}");
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn log(&self, name: &str) -> File {
        let path = self.path(name);
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        stop(&self.child);
        stop(&self.etcd);
    }
}

fn options(kubeconfig: PathBuf) -> StoreOptions {
    StoreOptions {
        url: "kube".into(),
        kubeconfig: Some(kubeconfig),
        ..StoreOptions::default()
    }
}

fn program(name: &str) -> Command {
    let bins = std::env::var_os("VIADUCT_KUBE_BINS").unwrap_or_else(|| {
        panic!(
            "VIADUCT_KUBE_BINS is not set: run `make test-kube-store`, which builds the API server"
        )
    });
    Command::new(Path::new(&bins).join(name))
}

fn stop(child: &Mutex<Option<Child>>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mut child) = child.take() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A port that nobody listens on, below those that the kernel gives to outgoing
/// connections.
fn free_port() -> u16 {
    std::iter::repeat_with(|| rand::random_range(10_000..32_000))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .unwrap()
}
