//! Small pieces of SQL and the shapes of rows, used by [`super::engine`].

use rusqlite::{Connection, OptionalExtension};

use crate::store::{Change, Cursor, Entry, LeaseId, StoreError, Version};

/// A failed step inside a transaction: sqlite's own, or the answer to give.
pub(super) enum Step {
    Sqlite(rusqlite::Error),
    Answer(StoreError),
}

impl From<rusqlite::Error> for Step {
    fn from(e: rusqlite::Error) -> Self {
        Step::Sqlite(e)
    }
}

impl From<StoreError> for Step {
    fn from(e: StoreError) -> Self {
        Step::Answer(e)
    }
}

/// A batch of changes and where the next one begins.
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    pub(super) cursor: Cursor,
    /// Where the history stood.
    pub(super) newest: Position,
}

/// Where the store's history stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) store_id: String,
    pub(super) seq: i64,
}

impl Position {
    pub(super) fn cursor(&self) -> Cursor {
        Cursor(format!("{}.{}", self.store_id, self.seq))
    }

    pub(super) fn parse(cursor: &Cursor) -> Option<Self> {
        let (store_id, seq) = cursor.0.split_once('.')?;
        Some(Self {
            store_id: store_id.to_owned(),
            seq: seq.parse().ok()?,
        })
    }
}

/// The sequence number of the last change ever.
pub(super) fn current(conn: &Connection) -> rusqlite::Result<i64> {
    Ok(conn
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")?
        .query_row([], |row| row.get(0))
        .optional()?
        .unwrap_or(0))
}

pub(super) fn version(conn: &Connection, key: &str) -> Result<Version, Step> {
    let version: i64 = conn
        .prepare_cached("SELECT version FROM records WHERE key = ?1")?
        .query_row([key], |row| row.get(0))?;
    Ok(Version(version.to_string()))
}

pub(super) fn check_lease(conn: &Connection, lease: Option<&LeaseId>) -> Result<(), Step> {
    if let Some(lease) = lease
        && !conn
            .prepare_cached("SELECT 1 FROM leases WHERE id = ?1")?
            .exists([&lease.0])?
    {
        return Err(expired(lease).into());
    }
    Ok(())
}

pub(super) fn expired(lease: &LeaseId) -> StoreError {
    StoreError::LeaseExpired {
        lease: lease.clone(),
    }
}

/// A version that was not made here fits no record.
pub(super) fn number(version: &Version) -> i64 {
    version.0.parse().unwrap_or(-1)
}

/// Just past all keys that begin with `prefix`, which ends in `/`.
pub(super) fn end_of(prefix: &str) -> String {
    format!("{}0", prefix.trim_end_matches('/'))
}

/// Text where it can be, so that a person can read it; bytes else.
pub(super) fn text(value: &[u8]) -> rusqlite::types::ToSqlOutput<'_> {
    use rusqlite::types::{ToSqlOutput, ValueRef};
    ToSqlOutput::Borrowed(match std::str::from_utf8(value) {
        Ok(_) => ValueRef::Text(value),
        Err(_) => ValueRef::Blob(value),
    })
}

pub(super) fn entry(name: String, row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Entry> {
    use rusqlite::types::ValueRef;
    let value = match row.get_ref(at)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        // Somebody wrote a bare number by hand; whoever decodes it will say so.
        ValueRef::Integer(n) => n.to_string().into_bytes(),
        ValueRef::Real(n) => n.to_string().into_bytes(),
        ValueRef::Null => Vec::new(),
    };
    Ok(Entry {
        name,
        value,
        version: Version(row.get::<_, i64>(at + 1)?.to_string()),
    })
}
