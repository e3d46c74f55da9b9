//! Other processes: this test program, started again to do one thing.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use viaduct_datastore::{Store, StoreError, StoreOptions, Version, open};
use viaduct_model::Kind;

const DO: &str = "VIADUCT_TEST_CHILD_DO";
const URL: &str = "VIADUCT_TEST_CHILD_URL";
const NAME: &str = "VIADUCT_TEST_CHILD_NAME";

/// A process of ours, killed when it is dropped.
pub struct Process(Child);

impl Process {
    /// Starts one that does `what` on the store at `url` for ever (or until done).
    pub fn start(what: &str, url: &str, name: &str) -> Self {
        Self::start_as(what, url, name, None)
    }

    /// The same, under another uid and group.
    pub fn start_as(what: &str, url: &str, name: &str, ids: Option<(u32, u32)>) -> Self {
        let ours = std::env::current_exe().unwrap();
        let mut command = Command::new(if ids.is_some() { for_all() } else { &ours });
        command
            .args(["child::child", "--exact", "--nocapture"])
            .envs([(DO, what), (URL, url), (NAME, name)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some((uid, gid)) = ids {
            command.uid(uid).gid(gid).current_dir("/");
        }
        Self(command.spawn().unwrap())
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it has done it; what it printed.
    pub async fn done(mut self) -> String {
        use std::io::Read;
        let mut out = self.0.stdout.take().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        let text = read.await.unwrap();
        assert!(self.0.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program where every uid can run it: a build directory may lie in
/// somebody's home.
fn for_all() -> &'static PathBuf {
    static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("conformance");
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        (dir, path)
    });
    path
}

/// What a child does; no test by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn child() {
    let Ok(what) = std::env::var(DO) else {
        return;
    };
    let (url, name) = (std::env::var(URL).unwrap(), std::env::var(NAME).unwrap());
    let options = StoreOptions {
        url,
        ..StoreOptions::default()
    };
    let store = open(&options).await.unwrap();
    match what.as_str() {
        "write" => loop {
            write(&*store, &name, 1000).await;
        },
        "write-2500" => write(&*store, &name, 2500).await,
        "lead" => {
            let leadership = store.campaign("controller", &name).await.unwrap();
            store
                .create(Kind::Pool, "leads", name.as_bytes(), None)
                .await
                .unwrap();
            std::future::pending::<()>().await;
            drop(leadership);
        }
        "get" => println!("answer: {:?}", store.get(Kind::Pool, &name).await),
        other => panic!("{other}?"),
    }
}

/// Writes and deletes under names that begin with `name`. Others may be at it,
/// and we may have been killed in the midst of it before.
async fn write(store: &dyn Store, name: &str, times: usize) {
    for round in 0..times {
        let name = format!("{name}-{:02}", round % 50);
        let value = format!("{{\"round\":{round}}}");
        let there = store.get(Kind::Block, &name).await.unwrap();
        let version: Option<Version> = there.map(|e| e.version);
        let outcome = match version {
            None => store
                .create(Kind::Block, &name, value.as_bytes(), None)
                .await
                .map(drop),
            Some(v) if round % 5 == 0 => store.delete(Kind::Block, &name, &v).await,
            Some(v) => store
                .update(Kind::Block, &name, value.as_bytes(), &v, None)
                .await
                .map(drop),
        };
        match outcome {
            Ok(()) | Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}
