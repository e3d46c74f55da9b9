//! The etcd store.
//!
//! `endpoint` reaches the cluster and bounds every call, `watch` follows a
//! range of keys, `election` leads. Keys are `<prefix>/v1/<plural>/<name>` and
//! values JSON, so that `etcdctl get --prefix` reads like a page.

mod election;
mod endpoint;
mod fault;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
};
use futures_util::stream::{self, BoxStream, StreamExt};
use viaduct_model::{Invalid, Kind};

use crate::sqlite::check_name;
use crate::store::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Store, StoreError, Version,
};
use crate::url::StoreOptions;
use endpoint::{Access, Cluster, Credentials, TlsFiles};
use fault::Fault;
use watch::{Point, Watch};

/// How many records are read at a time: etcd's answers have a bounded size.
const PAGE: i64 = 1000;

/// An etcd store.
pub struct EtcdStore {
    etcd: Arc<Etcd>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdStore")
            .field(&self.etcd.cluster.describe)
            .finish()
    }
}

impl EtcdStore {
    /// A store on the members at `hosts` (`host:port`). Connects when it is used.
    ///
    /// # Errors
    /// A flag that does not fit, or a file that cannot be read.
    pub fn new(tls: bool, hosts: Vec<String>, options: &StoreOptions) -> Result<Self, Invalid> {
        let access = access(tls, hosts, options)?;
        access.check()?;
        Ok(Self {
            etcd: Arc::new(Etcd {
                cluster: Arc::new(Cluster::new(access)),
                prefix: prefix(options.etcd_prefix.as_deref().unwrap_or("/viaduct"))?,
            }),
        })
    }
}

fn access(tls: bool, hosts: Vec<String>, options: &StoreOptions) -> Result<Access, Invalid> {
    let files = TlsFiles {
        ca: options.etcd_ca.clone(),
        cert: options.etcd_cert.clone(),
        key: options.etcd_key.clone(),
    };
    let named = [
        ("--etcd-ca", &files.ca),
        ("--etcd-cert", &files.cert),
        ("--etcd-key", &files.key),
    ];
    if !tls && let Some((flag, Some(path))) = named.into_iter().find(|(_, path)| path.is_some()) {
        return Err(Invalid::new(
            "flag",
            flag,
            path.display(),
            "it is for TLS, which needs a --datastore of etcds://...",
        ));
    }
    if tls && files.ca.is_none() {
        return Err(Invalid::new(
            "flag",
            "--etcd-ca",
            "",
            "etcds:// needs the file of the authority that signed the servers",
        ));
    }
    if files.cert.is_some() != files.key.is_some() {
        return Err(Invalid::new(
            "flag",
            "--etcd-cert",
            "",
            "--etcd-cert and --etcd-key go together",
        ));
    }
    let credentials = match (&options.etcd_username, &options.etcd_password_file) {
        (Some(user), Some(password_file)) => Some(Credentials {
            user: user.clone(),
            password_file: password_file.clone(),
        }),
        (None, None) => None,
        _ => {
            return Err(Invalid::new(
                "flag",
                "--etcd-username",
                options.etcd_username.as_deref().unwrap_or(""),
                "--etcd-username and --etcd-password-file go together",
            ));
        }
    };
    Ok(Access {
        hosts,
        tls: tls.then_some(files),
        credentials,
    })
}

fn prefix(given: &str) -> Result<String, Invalid> {
    let trimmed = given.trim_end_matches('/');
    if !trimmed.starts_with('/') || trimmed.contains("//") || trimmed.contains('\0') {
        return Err(Invalid::new(
            "flag",
            "--etcd-prefix",
            given,
            "a path such as /viaduct, beginning with a slash",
        ));
    }
    Ok(trimmed.to_owned())
}

/// Calls in etcd's terms, used by the store and by elections.
struct Etcd {
    cluster: Arc<Cluster>,
    prefix: String,
}

impl Etcd {
    fn range(&self, kind: Kind) -> String {
        format!("{}/v1/{}/", self.prefix, kind.plural())
    }

    fn key(&self, kind: Kind, name: &str) -> Result<String, StoreError> {
        check_name(kind, name)?;
        Ok(self.range(kind) + name)
    }

    fn saw<T>(&self, outcome: Result<T, Fault>) -> Result<T, StoreError> {
        let outcome = outcome.map_err(|fault| self.cluster.error(fault));
        self.cluster.monitor.saw(outcome)
    }

    /// A key as it is now, and the revision that "now" is.
    async fn read(&self, key: &str) -> Result<(Option<KeyValue>, Point), StoreError> {
        let outcome = self
            .cluster
            .call(
                true,
                |mut client| async move { client.get(key, None).await },
            )
            .await;
        let (mut answer, _) = self.saw(outcome)?;
        let at = point(answer.header());
        Ok((answer.take_kvs().into_iter().next(), at))
    }

    /// Creates a key; the revision of that, or `None` when it exists.
    async fn put_new(
        &self,
        key: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Option<i64>, StoreError> {
        let absent = Compare::create_revision(key, CompareOp::Equal, 0);
        self.put_if(absent, key, value, lease).await
    }

    /// Writes a key if a condition holds; the revision of that, or `None`.
    async fn put_if(
        &self,
        condition: Compare,
        key: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Option<i64>, StoreError> {
        let mut options = PutOptions::new();
        if let Some(lease) = lease {
            options = options.with_lease(number(lease)?);
        }
        let txn = Txn::new()
            .when([condition])
            .and_then([TxnOp::put(key, value, Some(options))]);
        self.txn(txn, lease).await
    }

    async fn txn(&self, txn: Txn, lease: Option<&LeaseId>) -> Result<Option<i64>, StoreError> {
        let outcome = self
            .cluster
            .call(false, |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await;
        let (answer, _) = self.leased(outcome, lease)?;
        Ok(answer
            .succeeded()
            .then(|| answer.header().map_or(0, |h| h.revision())))
    }

    /// As [`Etcd::saw`], but a missing lease is that and no trouble.
    fn leased<T>(
        &self,
        outcome: Result<T, Fault>,
        lease: Option<&LeaseId>,
    ) -> Result<T, StoreError> {
        match (outcome, lease) {
            (Err(Fault::LeaseGone), Some(lease)) => self.cluster.monitor.saw(Err(expired(lease))),
            (outcome, _) => self.saw(outcome),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // Whole seconds, and never shorter than asked for.
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let outcome = self
            .cluster
            .call(true, |mut client| async move {
                client.lease_grant(seconds.max(1), None).await
            })
            .await;
        let (answer, _) = self.saw(outcome)?;
        Ok(LeaseId(format!("{:x}", answer.id())))
    }

    async fn keep(&self, lease: &LeaseId) -> Result<(), StoreError> {
        let id = number(lease)?;
        // The first answer on the stream is the renewal; the stream then ends.
        let outcome = self
            .cluster
            .call(true, |mut client| async move {
                client.lease_keep_alive(id).await.map(drop)
            })
            .await;
        self.leased(outcome, Some(lease)).map(drop)
    }

    async fn revoke(&self, lease: &LeaseId) -> Result<(), StoreError> {
        let Ok(id) = number(lease) else {
            return Ok(());
        };
        let outcome = self
            .cluster
            .call(true, |mut client| async move {
                client.lease_revoke(id).await.map(drop)
            })
            .await;
        match self.leased(outcome, Some(lease)) {
            Ok(_) | Err(StoreError::LeaseExpired { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// All keys of a kind at one revision, page by page.
    async fn pages(&self, kind: Kind) -> Result<List, Fault> {
        let range = self.range(kind);
        // Just past all keys that begin with the range, which ends in a slash.
        let end = format!("{}0", range.trim_end_matches('/'));
        let mut from = range.clone().into_bytes();
        let mut entries = Vec::new();
        let mut at: Option<Point> = None;
        loop {
            let mut options = GetOptions::new().with_range(end.as_str()).with_limit(PAGE);
            if let Some(at) = at {
                options = options.with_revision(at.revision);
            }
            let (mut page, _) = self
                .cluster
                .call(true, |mut client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move { client.get(from, Some(options)).await }
                })
                .await?;
            let first = *at.get_or_insert(point(page.header()));
            let more = page.more();
            let kvs = page.take_kvs();
            if let (true, Some(last)) = (more, kvs.last()) {
                // The next key after it, in the order of bytes.
                from = last.key().to_vec();
                from.push(0);
            }
            entries.extend(kvs.into_iter().map(|kv| {
                let name = &kv.key()[range.len()..];
                entry(String::from_utf8_lossy(name).into_owned(), &kv)
            }));
            if !more {
                return Ok(List {
                    entries,
                    cursor: first.cursor(),
                });
            }
        }
    }
}

fn point(header: Option<&etcd_client::ResponseHeader>) -> Point {
    Point {
        cluster: header.map_or(0, |h| h.cluster_id()),
        revision: header.map_or(0, |h| h.revision()),
    }
}

fn entry(name: String, kv: &KeyValue) -> Entry {
    Entry {
        name,
        value: kv.value().to_vec(),
        version: Version(kv.mod_revision().to_string()),
    }
}

fn expired(lease: &LeaseId) -> StoreError {
    StoreError::LeaseExpired {
        lease: lease.clone(),
    }
}

/// A lease that was not granted here does not exist here.
fn number(lease: &LeaseId) -> Result<i64, StoreError> {
    i64::from_str_radix(&lease.0, 16).map_err(|_| expired(lease))
}

#[async_trait]
impl Store for EtcdStore {
    fn describe(&self) -> String {
        self.etcd.cluster.describe.clone()
    }

    fn connectivity(&self) -> tokio::sync::watch::Receiver<Connectivity> {
        self.etcd.cluster.monitor.subscribe()
    }

    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        let key = self.etcd.key(kind, name)?;
        let (there, _) = self.etcd.read(&key).await?;
        Ok(there.map(|kv| entry(name.to_owned(), &kv)))
    }

    async fn list(&self, kind: Kind) -> Result<List, StoreError> {
        let mut outcome = self.etcd.pages(kind).await;
        if let Err(Fault::Compacted) = outcome {
            // Compacted between two pages: once more from the first.
            outcome = self.etcd.pages(kind).await;
        }
        self.etcd.saw(outcome)
    }

    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let key = self.etcd.key(kind, name)?;
        match self.etcd.put_new(&key, value, lease).await? {
            Some(revision) => Ok(Version(revision.to_string())),
            None => Err(StoreError::AlreadyExists {
                kind,
                name: name.to_owned(),
            }),
        }
    }

    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let key = self.etcd.key(kind, name)?;
        let conflict = || StoreError::Conflict {
            kind,
            name: name.to_owned(),
        };
        let unchanged = unchanged(&key, expected).ok_or_else(conflict)?;
        let written = self.etcd.put_if(unchanged, &key, value, lease).await?;
        written
            .map(|revision| Version(revision.to_string()))
            .ok_or_else(conflict)
    }

    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        let key = self.etcd.key(kind, name)?;
        let conflict = || StoreError::Conflict {
            kind,
            name: name.to_owned(),
        };
        let unchanged = unchanged(&key, expected).ok_or_else(conflict)?;
        let txn = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::delete(key.as_str(), None::<DeleteOptions>)]);
        self.etcd
            .txn(txn, None)
            .await?
            .map(drop)
            .ok_or_else(conflict)
    }

    async fn watch(
        &self,
        kind: Kind,
        from: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let Some(point) = Point::parse(&from) else {
            return Err(StoreError::Compacted { cursor: from });
        };
        let cluster = self.etcd.cluster.clone();
        let begun = Watch::begin(cluster, self.etcd.range(kind), point).await;
        let watch = self.etcd.cluster.monitor.saw(begun)?;
        Ok(stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((next, watch))
        })
        .boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.etcd.grant(ttl).await
    }

    async fn keep_alive(&self, lease: &LeaseId) -> Result<(), StoreError> {
        self.etcd.keep(lease).await
    }

    async fn revoke_lease(&self, lease: &LeaseId) -> Result<(), StoreError> {
        self.etcd.revoke(lease).await
    }

    async fn lease_remaining(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Duration>, StoreError> {
        let key = self.etcd.key(kind, name)?;
        let (there, _) = self.etcd.read(&key).await?;
        let Some(lease) = there.map(|kv| kv.lease()).filter(|&lease| lease != 0) else {
            return Ok(None);
        };
        let outcome = self
            .etcd
            .cluster
            .call(true, |mut client| async move {
                client.lease_time_to_live(lease, None).await
            })
            .await;
        match outcome {
            Err(Fault::LeaseGone) => Ok(Some(Duration::ZERO)),
            outcome => {
                let (answer, _) = self.etcd.saw(outcome)?;
                // Negative once it ran out.
                let seconds = u64::try_from(answer.ttl()).unwrap_or(0);
                Ok(Some(Duration::from_secs(seconds)))
            }
        }
    }

    async fn campaign(&self, election: &str, identity: &str) -> Result<Leadership, StoreError> {
        election::campaign(&self.etcd, election, identity).await
    }
}

/// The condition that a key still has a version; `None` when no key can.
fn unchanged(key: &str, expected: &Version) -> Option<Compare> {
    let revision: i64 = expected.0.parse().ok().filter(|&r| r > 0)?;
    Some(Compare::mod_revision(key, CompareOp::Equal, revision))
}
