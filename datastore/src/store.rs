//! The trait that every store implements, and the plain types it speaks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use thiserror::Error;
use tokio::sync::watch;
use viaduct_model::{Cidr, Kind};

/// A record's version, which changes with every write of it. Opaque: only the
/// store that made it can read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A position in a store's history from which a watch continues without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub String);

/// A liveness lease: records bound to it vanish when it is not kept alive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseId(pub String);

/// A record as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The record's name.
    pub name: String,
    /// Its bytes, which ought to be JSON but were written by anybody.
    pub value: Vec<u8>,
    /// The version of this very content.
    pub version: Version,
}

/// Everything of one kind at one moment.
#[derive(Debug, Clone)]
pub struct List {
    /// The records, in name order.
    pub entries: Vec<Entry>,
    /// Where a watch has to begin to see every later change.
    pub cursor: Cursor,
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created or updated.
    Put(Entry),
    /// Deleted, or expired with its lease.
    Delete {
        /// The record's name.
        name: String,
    },
}

/// Why a call to a store failed.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Create-if-absent found the record there.
    #[error("{kind} {name:?} exists already")]
    AlreadyExists {
        /// Which record.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// A compare-and-swap or delete found another version than expected, or nothing.
    #[error("{kind} {name:?} was changed by somebody else")]
    Conflict {
        /// Which record.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The cursor lies before what the store still remembers: list anew.
    #[error("the store no longer remembers the history since {}", cursor.0)]
    Compacted {
        /// The cursor that was asked for.
        cursor: Cursor,
    },
    /// The lease is gone: it expired, or the store lost it.
    #[error("the liveness lease {} has expired", lease.0)]
    LeaseExpired {
        /// The lease.
        lease: LeaseId,
    },
    /// The store cannot be reached or cannot answer now; trying again may help.
    #[error("the store {store} does not answer: {reason}")]
    Unavailable {
        /// The store's URL, without secrets.
        store: String,
        /// What the client library said.
        reason: String,
    },
    /// The store refuses us: credentials, permissions, a file mode.
    #[error("the store {store} refuses: {reason}")]
    Refused {
        /// The store's URL, without secrets.
        store: String,
        /// What the store said.
        reason: String,
    },
    /// The record belongs to a node, and this is not the machine of its Node object.
    #[error("node {name:?} is not this one: {reason}")]
    NotOurNode {
        /// The node's name.
        name: String,
        /// How it differs.
        reason: String,
    },
    /// Another Viaduct looks after this cluster.
    #[error(
        "another Viaduct is installed in this cluster, in namespace {theirs:?}, and its \
         controller leads; this one, in namespace {ours:?}, stands aside: uninstall one of the two"
    )]
    SecondInstallation {
        /// Where the other is.
        theirs: String,
        /// Where this one is.
        ours: String,
    },
    /// The store has nothing of the kind.
    #[error("the store {store} has no {what}")]
    Unsupported {
        /// The store's URL, without secrets.
        store: String,
        /// What it has not, and what is in its place.
        what: &'static str,
    },
    /// What was to be written is not a valid record.
    #[error(transparent)]
    Invalid(#[from] viaduct_model::Invalid),
}

/// Whether the store answers, as seen by the last thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connectivity {
    /// Nothing was tried yet.
    Unknown,
    /// The last call or watch worked.
    Connected,
    /// The last call or watch failed.
    Disconnected {
        /// What was said then; one line, no secrets.
        reason: String,
    },
}

/// The leadership of an election, held until [`Leadership::lost`] says otherwise
/// or it is dropped (which resigns).
pub struct Leadership {
    /// Turns true when the leadership is lost; the holder must stop acting.
    pub lost: watch::Receiver<bool>,
    /// Resigns when dropped.
    pub guard: Box<dyn Send + Sync>,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("lost", &*self.lost.borrow())
            .finish()
    }
}

impl Leadership {
    /// Resigns, and waits (for a short while) until the store knows it, so that the next
    /// one can lead at once though this process ends now.
    pub async fn resign(self) {
        let Self { mut lost, guard } = self;
        drop(guard);
        let told = async { while lost.changed().await.is_ok() {} };
        // Else it runs out.
        let _ = tokio::time::timeout(Duration::from_secs(2), told).await;
    }
}

/// Something that happened to a record and that people want to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which record.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// One word, CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub text: String,
    /// Whether somebody ought to do something.
    pub warning: bool,
}

/// What is wrong with a record, as it is said on the record itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// One word, CamelCase.
    pub reason: String,
    /// A sentence.
    pub text: String,
}

/// A pod as the cluster itself knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// `namespace/name`.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// Its addresses, as far as the cluster was told.
    pub addresses: Vec<IpAddr>,
}

/// What tells that a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The liveness lease that its records hang on.
    Leases,
    /// The cluster's own Node objects: there are no liveness leases, and a node's records
    /// go when its Node does.
    Nodes,
}

/// A datastore. Every call may fail with [`StoreError::Unavailable`] and must do
/// so within a few seconds instead of hanging; nothing here retries, except that
/// the connection itself is re-made underneath.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The store's URL for people, without secrets.
    fn describe(&self) -> String;

    /// Whether the store answers; changes as calls and watches succeed and fail.
    fn connectivity(&self) -> watch::Receiver<Connectivity>;

    /// What tells that a node is there.
    fn presence(&self) -> Presence {
        Presence::Leases
    }

    /// Whether the cluster has a node of this name, where the cluster knows of nodes by
    /// itself ([`Presence::Nodes`]).
    async fn node_stands(&self, _name: &str) -> Result<Option<bool>, StoreError> {
        Ok(None)
    }

    /// The labels that the cluster itself has on a node; none where it knows of no nodes.
    async fn node_labels(&self, _name: &str) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(BTreeMap::new())
    }

    /// Tells the cluster itself that pods of this node have a network, if it does not know
    /// that yet. Never tells the contrary.
    async fn announce_network(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// The pod CIDRs that the cluster itself has given a node; none where it knows of no
    /// nodes, or has given it none.
    async fn node_cidrs(&self, _name: &str) -> Result<Vec<Cidr>, StoreError> {
        Ok(Vec::new())
    }

    /// Gives a node its pod CIDRs, where nothing stands; they can never be changed.
    async fn publish_node_cidrs(&self, _name: &str, _cidrs: &[Cidr]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Creates a block that goes with its node.
    async fn adopt_block(
        &self,
        _name: &str,
        _value: &[u8],
        _node: &str,
    ) -> Result<Version, StoreError> {
        Err(StoreError::Unsupported {
            store: self.describe(),
            what: "pod CIDRs of nodes: that is for --datastore kube",
        })
    }

    /// Tells people of what happened to a record, where the store has a place for that
    /// (events in Kubernetes).
    async fn note(&self, _note: &Note) -> Result<(), StoreError> {
        Ok(())
    }

    /// What is said on records of a kind to be wrong with them, where the store has a place
    /// for that beside the record (conditions in Kubernetes).
    async fn marks(&self, _kind: Kind) -> Result<Vec<(String, Mark)>, StoreError> {
        Ok(Vec::new())
    }

    /// Says on a record what is wrong with it, or no longer.
    async fn set_mark(
        &self,
        _kind: Kind,
        _name: &str,
        _mark: Option<&Mark>,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// The pods with a network of their own, where the cluster knows of pods by itself.
    async fn pods(&self) -> Result<Option<Vec<PodRef>>, StoreError> {
        Ok(None)
    }

    /// Reads one record.
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError>;

    /// Reads all records of a kind, and where to watch from.
    async fn list(&self, kind: Kind) -> Result<List, StoreError>;

    /// Creates a record if there is none of that name; with `lease`, it vanishes
    /// when the lease does.
    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError>;

    /// Replaces a record if it still has the expected version.
    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError>;

    /// Deletes a record if it still has the expected version.
    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError>;

    /// All changes of a kind after `from`, in order, none missing and none twice,
    /// until the stream ends with an error ([`StoreError::Compacted`] means: list
    /// anew). A record that is written faster than it is read may be seen in its
    /// newest state only.
    async fn watch(
        &self,
        kind: Kind,
        from: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError>;

    /// Grants a liveness lease that expires `ttl` after its last keep-alive.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Keeps a lease alive for another `ttl`.
    async fn keep_alive(&self, lease: &LeaseId) -> Result<(), StoreError>;

    /// Ends a lease; records bound to it vanish.
    async fn revoke_lease(&self, lease: &LeaseId) -> Result<(), StoreError>;

    /// How much life is left in the lease that a record hangs on; `None` when the
    /// record is gone or hangs on none.
    async fn lease_remaining(&self, kind: Kind, name: &str)
    -> Result<Option<Duration>, StoreError>;

    /// Waits until `identity` leads `election`. Cancel by dropping the future.
    async fn campaign(&self, election: &str, identity: &str) -> Result<Leadership, StoreError>;
}

/// A shared store.
pub type SharedStore = Arc<dyn Store>;
