//! The suite on sqlite, and what only sqlite can suffer.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use viaduct_datastore::{Connectivity, Cursor, Store, StoreError, StoreOptions, open};
use viaduct_model::Kind;

use crate::Lab;
use crate::child::Process;
use crate::follower::{PATIENCE, eventually, listed, picture, until};

/// A store file in a directory of its own.
pub struct SqliteLab {
    dir: TempDir,
}

impl SqliteLab {
    pub async fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("store.db")
    }
}

impl Lab for SqliteLab {
    async fn open(&self) -> Arc<dyn Store> {
        open(&StoreOptions {
            url: format!("sqlite:{}", self.path().display()),
            ..StoreOptions::default()
        })
        .await
        .unwrap()
    }
}

crate::all_cases!(SqliteLab::new());

impl SqliteLab {
    fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    /// The database as any other program sees it.
    fn raw(&self) -> rusqlite::Connection {
        let raw = rusqlite::Connection::open(self.path()).unwrap();
        raw.busy_timeout(PATIENCE).unwrap();
        raw
    }
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> String {
    outcome.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_can_read_the_store_with_sqlite3() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    store
        .create(Kind::Block, "10.0.0.0-26", b"{\"node\":\"a\"}", None)
        .await
        .unwrap();
    let (key, value): (String, String) = lab
        .raw()
        .query_row("SELECT key, value FROM records", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .unwrap();
    assert_eq!(
        (key.as_str(), value.as_str()),
        ("/viaduct/v1/blocks/10.0.0.0-26", "{\"node\":\"a\"}")
    );
    assert_eq!(
        lab.raw()
            .query_row("SELECT typeof(value) FROM records", [], |r| r
                .get::<_, String>(0))
            .unwrap(),
        "text"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_wake_nobody_are_noticed_soon() {
    let lab = SqliteLab::new().await;
    let mut seen = picture(lab.open().await, Kind::Pool);
    until(&mut seen, "told of the empty store", |_| true).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let by_hand = [
        (
            "INSERT INTO records (key, value) VALUES ('/viaduct/v1/pools/x', '{}')",
            Some("{}"),
        ),
        ("UPDATE records SET value = '[]'", Some("[]")),
        ("DELETE FROM records", None),
    ];
    for (sql, then) in by_hand {
        let begun = Instant::now();
        lab.raw().execute_batch(sql).unwrap();
        until(&mut seen, sql, |p| {
            p.get("x").map(|v| &v[..]) == then.map(str::as_bytes)
        })
        .await;
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{sql}: {:?}",
            begun.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_is_noticed_at_once() {
    let lab = SqliteLab::new().await;
    let (store, other) = (lab.open().await, lab.open().await);
    let mut seen = picture(other, Kind::Pool);
    store.create(Kind::Pool, "first", b"", None).await.unwrap();
    until(&mut seen, "the first one", |p| p.len() == 1).await;
    let mut waits = Vec::new();
    for n in 0..9 {
        // Not in step with the slow poll.
        tokio::time::sleep(Duration::from_millis(130)).await;
        let begun = Instant::now();
        store
            .create(Kind::Pool, &format!("p{n}"), b"", None)
            .await
            .unwrap();
        until(&mut seen, "the next one", |p| p.len() == n + 2).await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    assert!(waits[4] < Duration::from_millis(100), "it polls: {waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_older_than_the_log_is_compacted_and_a_follower_recovers() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    let version = store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    let list = store.list(Kind::Pool).await.unwrap();
    let version = store
        .update(Kind::Pool, "a", b"2", &version, None)
        .await
        .unwrap();
    store.create(Kind::Pool, "b", b"1", None).await.unwrap();
    store
        .watch(Kind::Pool, list.cursor.clone())
        .await
        .map(drop)
        .expect("remembered still");
    lab.raw()
        .execute("DELETE FROM changes WHERE seq <= 2", [])
        .unwrap();
    let compacted = store.watch(Kind::Pool, list.cursor).await.map(drop);
    assert!(
        matches!(compacted, Err(StoreError::Compacted { .. })),
        "{compacted:?}"
    );
    let foreign = store
        .watch(Kind::Pool, Cursor("nonsense".into()))
        .await
        .map(drop);
    assert!(
        matches!(foreign, Err(StoreError::Compacted { .. })),
        "{foreign:?}"
    );
    // A follower that fell behind: the log goes while it does not look.
    let mut seen = picture(lab.open().await, Kind::Pool);
    until(&mut seen, "told", |p| p.len() == 2).await;
    let raw = lab.raw();
    raw.execute_batch(
        "BEGIN IMMEDIATE;
         UPDATE records SET value = '3' WHERE key LIKE '%/a';
         DELETE FROM records WHERE key LIKE '%/b';
         DELETE FROM changes; COMMIT",
    )
    .unwrap();
    until(&mut seen, "listed anew", |p| p.len() == 1 && p["a"] == b"3").await;
    assert_eq!(seen.borrow().1, 2, "by one more reset");
    let stale = store.update(Kind::Pool, "a", b"4", &version, None).await;
    assert!(
        matches!(stale, Err(StoreError::Conflict { .. })),
        "{stale:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_pruned_to_a_bounded_length() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    lab.raw()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO changes (key, deleted) SELECT '/viaduct/v1/pools/a', 0 FROM n;
             UPDATE records SET value = '2'",
        )
        .unwrap();
    store.create(Kind::Pool, "b", b"1", None).await.unwrap();
    let rows: i64 = lab
        .raw()
        .query_row("SELECT count(*) FROM changes", [], |r| r.get(0))
        .unwrap();
    assert!((16_000..17_500).contains(&rows), "{rows}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_missed_across_processes() {
    let lab = SqliteLab::new().await;
    let mut seen = picture(lab.open().await, Kind::Block);
    let children = ["a", "b"].map(|name| Process::start("write-2500", &lab.url(), name));
    for child in children {
        child.done().await;
    }
    let truth = listed(&lab.open().await, Kind::Block).await;
    assert!(truth.len() > 50, "{}", truth.len());
    until(&mut seen, "the follower equals the list", |p| *p == truth).await;
    assert_eq!(seen.borrow().1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_killed_in_mid_write_harm_nothing() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    let mut seen = picture(lab.open().await, Kind::Block);
    for round in 0..8 {
        let child = Process::start("write", &lab.url(), &format!("w{}", round % 2));
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        child.kill();
        store
            .create(Kind::Pool, &format!("p{round}"), b"1", None)
            .await
            .expect("no lock is left behind");
    }
    let check: String = lab
        .raw()
        .query_row("PRAGMA integrity_check", [], |r| r.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    let truth = listed(&store, Kind::Block).await;
    assert!(!truth.is_empty());
    until(&mut seen, "the follower equals the list", |p| *p == truth).await;
    assert_eq!(listed(&store, Kind::Pool).await.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_is_followed_within_two_seconds() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    let leader = Process::start("lead", &lab.url(), "child");
    eventually("the child leads", async || {
        store.get(Kind::Pool, "leads").await.unwrap()
    })
    .await;
    let early =
        tokio::time::timeout(Duration::from_secs(1), store.campaign("controller", "us")).await;
    assert!(early.is_err(), "two leaders");
    leader.kill();
    let begun = Instant::now();
    let led = tokio::time::timeout(PATIENCE, store.campaign("controller", "us"))
        .await
        .unwrap()
        .unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    // Somebody tidies up: the lock is another file now, and no proof of anything.
    let lock = lab.dir.path().join("store.db-leader-controller");
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), "us\n");
    std::fs::remove_file(lock).unwrap();
    let mut lost = led.lost.clone();
    tokio::time::timeout(PATIENCE, lost.wait_for(|lost| *lost))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_directory_is_named_and_the_store_works_once_it_is_there() {
    let lab = SqliteLab::new().await;
    let dir = lab.dir.path().join("later");
    let url = format!("sqlite:{}/store.db", dir.display());
    let options = StoreOptions {
        url,
        ..StoreOptions::default()
    };
    let store = open(&options).await.unwrap();
    let mut connectivity = store.connectivity();
    let mut seen = picture(store.clone(), Kind::Pool);
    let said = reason(store.list(Kind::Pool).await);
    assert!(
        said.contains(&format!("{} does not exist", dir.display())),
        "{said}"
    );
    assert!(
        matches!(&*connectivity.borrow_and_update(), Connectivity::Disconnected { reason } if reason.contains("does not exist"))
    );
    let said = reason(store.campaign("c", "us").await.map(drop));
    assert!(said.contains("does not exist"), "{said}");
    std::fs::create_dir(&dir).unwrap();
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    assert_eq!(*connectivity.borrow_and_update(), Connectivity::Connected);
    until(&mut seen, "the follower came through", |p| p.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_removed_is_made_anew() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    let mut seen = picture(store.clone(), Kind::Pool);
    store.create(Kind::Pool, "old", b"1", None).await.unwrap();
    until(&mut seen, "the old one", |p| p.contains_key("old")).await;
    for entry in std::fs::read_dir(lab.dir.path()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    until(&mut seen, "the old one is gone", |p| p.is_empty()).await;
    lab.open()
        .await
        .create(Kind::Pool, "new", b"1", None)
        .await
        .unwrap();
    until(&mut seen, "the new one", |p| p.contains_key("new")).await;
    store
        .create(Kind::Pool, "new", b"1", None)
        .await
        .expect_err("both use the same file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_many_open_at_once_is_made_once_and_refused_to_nobody() {
    // Each turn is another chance for one of them to look while another one creates.
    for turn in 0..40 {
        let lab = SqliteLab::new().await;
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..8 {
            let store = lab.open().await;
            clients.spawn(async move {
                let name = format!("client-{client}");
                store.create(Kind::Node, &name, b"1", None).await
            });
        }
        for outcome in clients.join_all().await {
            assert!(outcome.is_ok(), "turn {turn}: {outcome:?}");
        }
        let list = lab.open().await.list(Kind::Node).await.unwrap();
        assert_eq!(list.entries.len(), 8, "turn {turn}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let lab = SqliteLab::new().await;
    let text = "not a database, but long enough to look like one ".repeat(40);
    std::fs::write(lab.path(), &text).unwrap();
    let said = lab.open().await.list(Kind::Pool).await;
    assert!(matches!(said, Err(StoreError::Refused { .. })), "{said:?}");
    assert!(reason(said).contains("is not a sqlite database"));
    assert_eq!(std::fs::read_to_string(lab.path()).unwrap(), text);

    let other = SqliteLab::new().await;
    other
        .raw()
        .execute_batch("CREATE TABLE theirs (x)")
        .unwrap();
    let before = std::fs::read(other.path()).unwrap();
    let said = reason(other.open().await.list(Kind::Pool).await);
    assert!(said.contains("another program"), "{said}");
    assert_eq!(std::fs::read(other.path()).unwrap(), before);

    let newer = SqliteLab::new().await;
    newer.open().await.list(Kind::Pool).await.unwrap();
    newer.raw().pragma_update(None, "user_version", 7).unwrap();
    let said = reason(newer.open().await.list(Kind::Pool).await);
    assert!(said.contains("newer release (layout 7"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_shared_with_the_group_of_the_directory_only() {
    let lab = SqliteLab::new().await;
    let store = lab.open().await;
    let leads = store.campaign("controller", "us").await.unwrap();
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    for suffix in ["", "-wal", "-shm", "-wake", "-leader-controller"] {
        let path = lab.dir.path().join(format!("store.db{suffix}"));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{}", path.display());
    }
    drop(leads);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // As the lab does it: another uid, joined by the group of a setgid directory.
    let (uid, gid) = (65_533, 65_532);
    std::os::unix::fs::chown(lab.dir.path(), None, Some(gid)).unwrap();
    std::fs::set_permissions(lab.dir.path(), Permissions::from_mode(0o2770)).unwrap();
    let url = lab.url();
    let refused = Process::start_as("get", &url, "a", Some((uid, gid)))
        .done()
        .await;
    assert!(
        refused.contains("Refused") && refused.contains("uid 65533"),
        "{refused}"
    );
    let shared = lab.dir.path().join("shared.db");
    let url = format!("sqlite:{}", shared.display());
    let options = StoreOptions {
        url: url.clone(),
        ..StoreOptions::default()
    };
    let store = open(&options).await.unwrap();
    store.create(Kind::Pool, "a", b"1", None).await.unwrap();
    let answer = Process::start_as("write-2500", &url, "b", Some((uid, gid)))
        .done()
        .await;
    assert!(!listed(&store, Kind::Block).await.is_empty(), "{answer}");
    let outside = Process::start_as("get", &url, "a", Some((uid, uid)))
        .done()
        .await;
    assert!(outside.contains("Refused"), "{outside}");
}
