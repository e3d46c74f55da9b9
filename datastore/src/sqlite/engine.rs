//! The store's operations as plain blocking calls on one connection.
//!
//! Owned by the store's thread ([`super::worker`]); nothing else touches the
//! connection. The connection is opened when it is first needed and again after
//! the file was replaced, so that a missing directory or a full disk is an
//! answer to a call and never the end of the process.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

use super::clock::Clock;
use super::files::{self, Identity};
use super::rows::{
    Batch, Position, Step, check_lease, current, end_of, entry, expired, number, text, version,
};
use super::schema::{self, Unfit};
use super::wake::Wake;
use crate::store::{Change, Cursor, Entry, LeaseId, StoreError, Version};

/// How many changes the log remembers; a watch further behind lists anew.
const HISTORY: i64 = 16_384;
/// The log is shortened each time that so many changes were added.
const PRUNE_EVERY: i64 = 512;
/// How many changes a watch reads at a time.
const BATCH: usize = 512;

/// The connection and what belongs to it.
struct Open {
    conn: Connection,
    file: Identity,
    store_id: String,
    wake: Wake,
    pruned_at: i64,
    quiet: Option<Quiet>,
}

/// What the last look found: it holds until another connection writes, we do,
/// or a lease is due. Makes looking once a second next to free.
struct Quiet {
    data_version: i64,
    position: Position,
    next_expiry: i64,
}

/// All operations of the store.
pub(super) struct Engine {
    store: String,
    path: PathBuf,
    clock: Clock,
    open: Option<Open>,
}

impl Engine {
    /// Operations on the store at `path`, which need not exist yet.
    pub(super) fn new(store: String, path: PathBuf) -> Self {
        Self {
            store,
            path,
            clock: Clock::new(),
            open: None,
        }
    }

    /// Reads one record.
    pub(super) fn get(&mut self, key: &str, name: &str) -> Result<Option<Entry>, StoreError> {
        self.read(|tx, _| {
            Ok(tx
                .prepare_cached("SELECT value, version FROM records WHERE key = ?1")?
                .query_row([key], |row| entry(name.to_owned(), row, 0))
                .optional()?)
        })
    }

    /// Reads all records under `prefix`, in order.
    pub(super) fn list(&mut self, prefix: &str) -> Result<(Vec<Entry>, Cursor), StoreError> {
        self.read(|tx, store_id| {
            let entries = tx
                .prepare_cached(
                    "SELECT key, value, version FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key",
                )?
                .query_map((prefix, end_of(prefix)), |row| {
                    let key: String = row.get(0)?;
                    entry(key[prefix.len()..].to_owned(), row, 1)
                })?
                .collect::<Result<_, _>>()?;
            let at = Position { store_id: store_id.to_owned(), seq: current(tx)? };
            Ok((entries, at.cursor()))
        })
    }

    /// Creates a record; `exists` is the answer when it is there already.
    pub(super) fn create(
        &mut self,
        key: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
        exists: StoreError,
    ) -> Result<Version, StoreError> {
        self.write(|tx| {
            check_lease(tx, lease)?;
            let created = tx
                .prepare_cached(
                    "INSERT INTO records (key, value, lease) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?
                .execute((key, text(value), lease.map(|l| &l.0)))?;
            if created == 0 {
                return Err(exists.into());
            }
            version(tx, key)
        })
    }

    /// Replaces a record; `conflict` is the answer when its version is another.
    pub(super) fn update(
        &mut self,
        key: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
        conflict: StoreError,
    ) -> Result<Version, StoreError> {
        self.write(|tx| {
            check_lease(tx, lease)?;
            let updated = tx
                .prepare_cached(
                    "UPDATE records SET value = ?2, lease = ?3 WHERE key = ?1 AND version = ?4",
                )?
                .execute((key, text(value), lease.map(|l| &l.0), number(expected)))?;
            if updated == 0 {
                return Err(conflict.into());
            }
            version(tx, key)
        })
    }

    /// Deletes a record; `conflict` is the answer when its version is another.
    pub(super) fn delete(
        &mut self,
        key: &str,
        expected: &Version,
        conflict: StoreError,
    ) -> Result<(), StoreError> {
        self.write(|tx| {
            let deleted = tx
                .prepare_cached("DELETE FROM records WHERE key = ?1 AND version = ?2")?
                .execute((key, number(expected)))?;
            if deleted == 0 {
                return Err(conflict.into());
            }
            Ok(())
        })
    }

    /// Changes under `prefix` after a cursor; a record that changed again later
    /// is told of once, where it changed last.
    pub(super) fn changes(&mut self, prefix: &str, from: &Cursor) -> Result<Batch, StoreError> {
        self.read(|tx, store_id| {
            let compacted = || {
                Step::Answer(StoreError::Compacted {
                    cursor: from.clone(),
                })
            };
            let since = Position::parse(from).ok_or_else(compacted)?;
            let oldest: Option<i64> =
                tx.query_row("SELECT min(seq) FROM changes", [], |row| row.get(0))?;
            let newest = current(tx)?;
            let remembered = oldest.map_or(newest, |oldest| oldest - 1);
            if since.store_id != store_id || since.seq < remembered || since.seq > newest {
                return Err(compacted());
            }
            let mut changes = Vec::new();
            let mut statement = tx.prepare_cached(
                "SELECT c.seq, c.key, r.value, r.version
                 FROM changes c LEFT JOIN records r ON r.key = c.key
                 WHERE c.seq > ?1 AND c.key >= ?2 AND c.key < ?3
                   AND c.deleted = (r.key IS NULL) AND (r.key IS NULL OR r.version = c.seq)
                 ORDER BY c.seq LIMIT ?4",
            )?;
            let mut rows = statement.query((since.seq, prefix, end_of(prefix), BATCH as i64))?;
            let mut last = since.seq;
            while let Some(row) = rows.next()? {
                last = row.get(0)?;
                let key: String = row.get(1)?;
                let name = key[prefix.len()..].to_owned();
                changes.push(match row.get_ref(2)? {
                    rusqlite::types::ValueRef::Null => Change::Delete { name },
                    _ => Change::Put(entry(name, row, 2)?),
                });
            }
            let at = |seq| Position {
                store_id: store_id.to_owned(),
                seq,
            };
            let seen = if changes.len() < BATCH { newest } else { last };
            Ok(Batch {
                changes,
                cursor: at(seen).cursor(),
                newest: at(newest),
            })
        })
    }

    /// Grants a lease.
    pub(super) fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl_ms = i64::try_from(ttl.as_millis())
            .unwrap_or(i64::MAX / 4)
            .max(1);
        let (now, boot) = (self.clock.now_ms(), self.clock.boot.clone());
        self.write(|tx| {
            let id: String = tx.query_row(
                "INSERT INTO leases (id, ttl_ms, expires_ms, boot)
                 VALUES (lower(hex(randomblob(8))), ?1, ?2, ?3) RETURNING id",
                (ttl_ms, now.saturating_add(ttl_ms), boot),
                |row| row.get(0),
            )?;
            Ok(LeaseId(id))
        })
    }

    /// Keeps a lease alive. Not synced to the disk: no lease outlives the boot.
    pub(super) fn keep_alive(&mut self, lease: &LeaseId) -> Result<(), StoreError> {
        let now = self.clock.now_ms();
        self.sync_mode("normal")?;
        let outcome = self.write(|tx| {
            let kept = tx
                .prepare_cached("UPDATE leases SET expires_ms = ?2 + ttl_ms WHERE id = ?1")?
                .execute((&lease.0, now))?;
            if kept == 0 {
                return Err(expired(lease).into());
            }
            Ok(())
        });
        // Failing to go back would make later writes less durable than promised.
        if self.sync_mode("full").is_err() {
            self.open = None;
        }
        outcome
    }

    /// Ends a lease, and with it the records that hang on it.
    pub(super) fn revoke(&mut self, lease: &LeaseId) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("DELETE FROM leases WHERE id = ?1", [&lease.0])?;
            Ok(())
        })
    }

    /// The life left in the lease of a record.
    pub(super) fn remaining(&mut self, key: &str) -> Result<Option<Duration>, StoreError> {
        let now = self.clock.now_ms();
        self.read(|tx, _| {
            let expires: Option<i64> = tx
                .prepare_cached(
                    "SELECT l.expires_ms FROM records r JOIN leases l ON l.id = r.lease
                     WHERE r.key = ?1",
                )?
                .query_row([key], |row| row.get(0))
                .optional()?;
            Ok(expires.map(|at| Duration::from_millis(u64::try_from(at - now).unwrap_or(0))))
        })
    }

    /// Where the history stands; ends leases that are due. What the slow poll
    /// and the wake-up call ask, so it has to be cheap.
    pub(super) fn poll(&mut self) -> Result<Position, StoreError> {
        if let Some(open) = &self.open
            && (files::identity(&self.path).ok() != Some(open.file)
                || open.wake.removed(&self.path))
        {
            tracing::warn!(store = %self.store, "the store's file was replaced or removed; opening it anew");
            self.open = None;
        }
        let now = self.clock.now_ms();
        let open = self.opened()?;
        // Before the look itself: a write in between is seen the next time.
        let data_version = open
            .conn
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut pragma| pragma.query_row([], |row| row.get::<_, i64>(0)));
        let data_version = match data_version {
            Ok(version) => version,
            Err(e) => return Err(self.fail(e.into())),
        };
        if let Some(quiet) = &open.quiet
            && quiet.data_version == data_version
            && quiet.next_expiry > now
        {
            return Ok(quiet.position.clone());
        }
        let (position, next_expiry) = self.read(|tx, store_id| {
            let next: Option<i64> = tx
                .prepare_cached("SELECT min(expires_ms) FROM leases")?
                .query_row([], |row| row.get(0))?;
            let position = Position {
                store_id: store_id.to_owned(),
                seq: current(tx)?,
            };
            Ok((position, next.unwrap_or(i64::MAX)))
        })?;
        self.opened()?.quiet = Some(Quiet {
            data_version,
            position: position.clone(),
            next_expiry,
        });
        Ok(position)
    }

    fn read<T>(
        &mut self,
        f: impl FnOnce(&Transaction<'_>, &str) -> Result<T, Step>,
    ) -> Result<T, StoreError> {
        self.expire_due()?;
        let open = self.opened()?;
        let outcome = open
            .conn
            .transaction_with_behavior(TransactionBehavior::Deferred)
            .map_err(Step::from)
            .and_then(|tx| f(&tx, &open.store_id));
        outcome.map_err(|step| self.fail(step))
    }

    fn write<T>(
        &mut self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T, Step>,
    ) -> Result<T, StoreError> {
        // In a transaction of its own: it must stand even when `f` is refused.
        self.expire_due()?;
        let open = self.opened()?;
        open.quiet = None;
        let outcome = commit(&mut open.conn, open.pruned_at, f);
        match outcome {
            Ok((value, seq)) => {
                if let Some(seq) = seq {
                    open.wake.touch();
                    if seq - open.pruned_at >= PRUNE_EVERY {
                        open.pruned_at = seq;
                    }
                }
                Ok(value)
            }
            Err(step) => Err(self.fail(step)),
        }
    }

    fn expire_due(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now_ms();
        let open = self.opened()?;
        let ended = (|| {
            let first: Option<i64> = open
                .conn
                .prepare_cached("SELECT min(expires_ms) FROM leases")?
                .query_row([], |row| row.get(0))?;
            if first.is_none_or(|at| at > now) {
                return Ok(None);
            }
            commit(&mut open.conn, open.pruned_at, |tx| {
                Ok(tx.execute("DELETE FROM leases WHERE expires_ms <= ?1", [now])?)
            })
            .map(|(_, seq)| seq)
        })();
        match ended {
            Ok(Some(_)) => {
                open.quiet = None;
                open.wake.touch();
            }
            Ok(None) => {}
            Err(step) => return Err(self.fail(step)),
        }
        Ok(())
    }

    fn sync_mode(&mut self, mode: &str) -> Result<(), StoreError> {
        let set = self.opened()?.conn.pragma_update(None, "synchronous", mode);
        set.map_err(|e| self.fail(e.into()))
    }

    fn opened(&mut self) -> Result<&mut Open, StoreError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open_file()?,
        };
        Ok(self.open.insert(open))
    }

    fn open_file(&self) -> Result<Open, StoreError> {
        let explain = |e: std::io::Error| files::explain(&self.store, &self.path, &e);
        files::create_database(&self.path).map_err(explain)?;
        // Before it is opened: were it replaced in between, the poll will see it.
        let file = files::identity(&self.path).map_err(explain)?;
        let wake = Wake::open(&self.path)
            .map_err(|e| files::explain(&self.store, &super::wake::path(&self.path), &e))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn =
            Connection::open_with_flags(&self.path, flags).map_err(|e| self.explain(e))?;
        let store_id = schema::prepare(&mut conn, &self.clock).map_err(|e| match e {
            Unfit::Sqlite(e) => self.explain(e),
            unfit => StoreError::Refused {
                store: self.store.clone(),
                reason: format!("{} is not a store of Viaduct: {unfit}", self.path.display()),
            },
        })?;
        Ok(Open {
            conn,
            file,
            store_id,
            wake,
            pruned_at: 0,
            quiet: None,
        })
    }

    /// Turns a failed step into the answer, and forgets a connection that is no
    /// longer of use.
    fn fail(&mut self, step: Step) -> StoreError {
        match step {
            Step::Answer(answer) => answer,
            Step::Sqlite(e) => {
                if !matches!(
                    e.sqlite_error_code(),
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
                ) {
                    self.open = None;
                }
                self.explain(e)
            }
        }
    }

    fn explain(&self, e: rusqlite::Error) -> StoreError {
        let store = self.store.clone();
        let path = self.path.display();
        match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => StoreError::Refused {
                store,
                reason: format!("{path} is not a sqlite database"),
            },
            Some(ErrorCode::DatabaseCorrupt) => StoreError::Refused {
                store,
                reason: format!("{path} is damaged ({e})"),
            },
            Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen) => {
                StoreError::Refused {
                    store,
                    reason: format!("{path}: {e}; {}", files::who_needs_what()),
                }
            }
            Some(ErrorCode::DiskFull) => StoreError::Unavailable {
                store,
                reason: format!("the disk under {path} is full"),
            },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Unavailable {
                store,
                reason: format!("{path} is locked by another process for too long"),
            },
            _ => StoreError::Unavailable {
                store,
                reason: format!("{path}: {e}"),
            },
        }
    }
}

/// Runs `f` in a writing transaction; also says where the history stands when
/// it went on.
fn commit<T>(
    conn: &mut Connection,
    pruned_at: i64,
    f: impl FnOnce(&Transaction<'_>) -> Result<T, Step>,
) -> Result<(T, Option<i64>), Step> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = current(&tx)?;
    let value = f(&tx)?;
    let after = current(&tx)?;
    if after - pruned_at >= PRUNE_EVERY {
        tx.execute("DELETE FROM changes WHERE seq <= ?1", [after - HISTORY])?;
    }
    tx.commit()?;
    Ok((value, (after != before).then_some(after)))
}
