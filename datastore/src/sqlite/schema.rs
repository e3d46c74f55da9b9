//! The tables of a sqlite store, and making sure that a file is one.
//!
//! The sequence, the version of each record and the change log are kept by
//! triggers, so that a person who edits a record with the `sqlite3` program is
//! noticed like any other writer.

use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::clock::Clock;

/// The layout that this release reads and writes.
pub(super) const LAYOUT: i64 = 1;

/// Marks the file as ours ("via1"), so that no other program's database is touched.
const APPLICATION: i64 = 0x7669_6131;

const TABLES: &str = "
CREATE TABLE store (id TEXT NOT NULL);
INSERT INTO store (id) VALUES (lower(hex(randomblob(8))));

CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    ttl_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    boot TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX leases_by_expiry ON leases (expires_ms);

CREATE TABLE records (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 0,
    lease TEXT
) WITHOUT ROWID;
CREATE INDEX records_by_lease ON records (lease) WHERE lease IS NOT NULL;

CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    deleted INTEGER NOT NULL
);

CREATE TRIGGER record_created AFTER INSERT ON records BEGIN
    INSERT INTO changes (key, deleted) VALUES (new.key, 0);
    UPDATE records SET version = (SELECT max(seq) FROM changes) WHERE key = new.key;
END;
CREATE TRIGGER record_updated AFTER UPDATE OF value, lease ON records BEGIN
    INSERT INTO changes (key, deleted) VALUES (new.key, 0);
    UPDATE records SET version = (SELECT max(seq) FROM changes) WHERE key = new.key;
END;
CREATE TRIGGER record_deleted AFTER DELETE ON records BEGIN
    INSERT INTO changes (key, deleted) VALUES (old.key, 1);
END;
CREATE TRIGGER lease_ended AFTER DELETE ON leases BEGIN
    DELETE FROM records WHERE lease = old.id;
END;
";

/// Why a database was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("it is a database of another program")]
    Foreign,
    #[error("it was made by a newer release (layout {0}, this release knows {LAYOUT})")]
    Newer(i64),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Sets the connection up, creates the tables in an empty file, and ends the
/// leases of earlier boots. Returns the store's identifier.
pub(super) fn prepare(conn: &mut Connection, clock: &Clock) -> Result<String, Unfit> {
    let mut waited = 0u32;
    // Short waits of varying length: with many writers sqlite's own schedule
    // starves some of them. About 4 s in all.
    conn.busy_handler(Some(move |count: i32| {
        waited = if count == 0 { 0 } else { waited + 1 };
        let pause = 1 + u64::from((waited ^ std::process::id()) % 4);
        std::thread::sleep(Duration::from_millis(pause));
        waited < 1600
    }))?;
    // Looked at before anything is written: it may not be ours.
    fit(&conn.transaction()?)?;
    to_write_ahead(conn)?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "cache_size", -512)?;
    conn.pragma_update(None, "journal_size_limit", 4 << 20)?;
    conn.set_prepared_statement_cache_capacity(32);

    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if fit(&tx)? == Fit::Empty {
        tx.execute_batch(TABLES)?;
        tx.pragma_update(None, "application_id", APPLICATION)?;
        tx.pragma_update(None, "user_version", LAYOUT)?;
    }
    tx.execute(
        "DELETE FROM leases WHERE boot <> ?1 OR expires_ms <= ?2",
        (&clock.boot, clock.now_ms()),
    )?;
    let id = tx.query_row("SELECT id FROM store", [], |row| row.get(0))?;
    tx.commit()?;
    Ok(id)
}

/// Write-ahead logging, which stays with the file. Where several make the same file at once
/// sqlite answers "busy" without asking the busy handler, because it sees a deadlock coming;
/// whoever lets go and asks again gets through.
fn to_write_ahead(conn: &Connection) -> rusqlite::Result<()> {
    let mut turn = 0;
    loop {
        match conn.pragma_update(None, "journal_mode", "wal") {
            Err(e) if turn < 400 && e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                turn += 1;
                std::thread::sleep(Duration::from_millis(1 + turn % 10));
            }
            outcome => return outcome,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Fit {
    Empty,
    Ours,
}

/// What a file is. Wants a transaction: without one each of the three readings is a moment
/// of its own, and a store that another process makes meanwhile looks like a stranger's.
fn fit(conn: &Transaction<'_>) -> Result<Fit, Unfit> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    let application = pragma("application_id")?;
    let layout = pragma("user_version")?;
    match (tables, application, layout) {
        (0, 0, 0) => Ok(Fit::Empty),
        (_, APPLICATION, LAYOUT) => Ok(Fit::Ours),
        (_, APPLICATION, newer) => Err(Unfit::Newer(newer)),
        _ => Err(Unfit::Foreign),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_comes_and_goes_is_never_taken_for_a_strangers() {
        let dir = tempfile::TempDir::new().unwrap();
        let open = || {
            let conn = Connection::open(dir.path().join("store.db")).unwrap();
            conn.busy_timeout(Duration::from_secs(30)).unwrap();
            conn
        };
        let mut other = open();
        to_write_ahead(&other).unwrap();
        std::thread::scope(|scope| {
            let coming_and_going = scope.spawn(move || {
                for turn in 0..600 {
                    let tx = other.transaction_with_behavior(TransactionBehavior::Immediate);
                    let tx = tx.unwrap();
                    let (layout, statement) = match turn % 2 {
                        0 => ((APPLICATION, LAYOUT), "CREATE TABLE store (id TEXT)"),
                        _ => ((0, 0), "DROP TABLE store"),
                    };
                    tx.execute_batch(statement).unwrap();
                    tx.pragma_update(None, "application_id", layout.0).unwrap();
                    tx.pragma_update(None, "user_version", layout.1).unwrap();
                    tx.commit().unwrap();
                }
            });
            let mut conn = open();
            while !coming_and_going.is_finished() {
                let is = fit(&conn.transaction().unwrap());
                assert!(is.is_ok(), "{:?}", is.err());
            }
        });
    }
}
