//! The store in the Kubernetes API: a custom resource for each kind of record.
//!
//! `crd` says what the API server checks and shows, `resource` turns records into
//! objects and back, `access` and `server` reach the API server and bound every call,
//! `watch` follows a collection, `owner` ties a node's records to its Node, `election`
//! leads by a Lease.
//!
//! There are no liveness leases: the Node object says whether a node is there. Nothing is
//! written here without the resource version that was read (docs/adr/0100).

mod access;
pub mod crd;
mod election;
mod events;
mod fault;
mod marks;
mod owner;
mod pods;
mod resource;
mod rivals;
mod server;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::params::{DeleteParams, GetParams, ListParams, Preconditions};
use serde_json::Value;
use viaduct_model::{Cidr, Invalid, Kind, NodeName};

use crate::store::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Mark, Note, PodRef, Presence,
    Store, StoreError, Version,
};
use crate::url::StoreOptions;
use access::Access;
use fault::Fault;
use resource::{Object, Page, Parts, Shape, dropped};
use server::{Call, Server};
use watch::{Event, Range, Watch};

/// How many objects are read at a time.
const PAGE: u32 = 500;

/// A store in the Kubernetes API.
pub struct KubeStore {
    server: Arc<Server>,
    /// Who writes, as the API server notes it for each field.
    manager: String,
}

impl fmt::Debug for KubeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KubeStore")
            .field(&self.server.describe)
            .finish()
    }
}

impl KubeStore {
    /// The store of the cluster that `--kubeconfig` or the pod's service account leads
    /// to. Connects when it is used.
    ///
    /// # Errors
    /// A file that cannot be read or makes no sense.
    pub async fn new(options: &StoreOptions) -> Result<Self, Invalid> {
        let access = Access::new(options.kubeconfig.as_ref())?;
        Ok(Self {
            server: Arc::new(Server::new(access).await?),
            manager: options.writer.clone().unwrap_or_else(|| "viaduct".into()),
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        verb: &'static str,
        resource: impl Into<String>,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, Fault> {
        self.server.call(&Call::new(verb, resource, request)?).await
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        shape: &Shape,
        name: &str,
    ) -> Result<T, Fault> {
        let request = kube::core::Request::new(shape.path()).get(name, &GetParams::default());
        self.ask("get", shape.plural, request).await
    }

    fn post_params(&self) -> PostParams {
        PostParams {
            field_manager: Some(self.manager.clone()),
            ..PostParams::default()
        }
    }

    /// Makes an object's status say this, if the object still has that resource version.
    async fn apply_status(
        &self,
        shape: &Shape,
        name: &str,
        object: &Object,
        parts: &Parts,
    ) -> Result<Object, Fault> {
        let version = &object.metadata.resource_version;
        let patch = Patch::Apply(shape.status(name, version, &parts.status));
        let params = PatchParams::apply(&self.manager).force();
        let request = kube::core::Request::new(shape.path())
            .patch_subresource("status", name, &params, &patch);
        let resource = format!("{}/status", shape.plural);
        let applied: Object = self.ask("patch", resource, request).await?;
        kept(
            &Value::Object(parts.status.clone()),
            &applied.status,
            "status",
        )?;
        Ok(applied)
    }

    async fn create_object(
        &self,
        shape: &Shape,
        name: &str,
        parts: &Parts,
        owners: Option<Value>,
    ) -> Result<Version, Fault> {
        let body = shape.object(name, parts, owners).to_string().into_bytes();
        let request = kube::core::Request::new(shape.path()).create(&self.post_params(), body);
        let mut object: Object = self.ask("create", shape.plural, request).await?;
        kept(&Value::Object(parts.spec.clone()), &object.spec, "spec")?;
        if !parts.status.is_empty() {
            // Create takes no status. Whoever sees the record before sees one that has
            // no news yet.
            object = self.apply_status(shape, name, &object, parts).await?;
        }
        Ok(object.metadata.version())
    }

    async fn update_object(
        &self,
        kind: Kind,
        name: &str,
        parts: &Parts,
        expected: &Version,
    ) -> Result<Version, StoreError> {
        let shape = Shape::of(kind);
        let told = |fault| self.told(kind, name, fault);
        let mut whole: Value = self.read(shape, name).await.map_err(told)?;
        let mut object = parsed(&whole).map_err(told)?;
        if object.metadata.version() != *expected {
            return Err(told(Fault::Conflict));
        }
        let owners = self.missing_owner(shape, name, &whole).await?;
        let standing = Parts::of(kind, name, &shape.entry(object.clone()).value);
        let standing = standing.ok();
        if owners.is_some() || standing.as_ref().is_none_or(|s| s.spec != parts.spec) {
            whole["spec"] = Value::Object(parts.spec.clone());
            if let Some(owners) = owners {
                whole["metadata"]["ownerReferences"] = owners;
            }
            // Left out means: as they are.
            if let Some(metadata) = whole["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            let body = whole.to_string().into_bytes();
            let request =
                kube::core::Request::new(shape.path()).replace(name, &self.post_params(), body);
            object = self
                .ask("update", shape.plural, request)
                .await
                .map_err(told)?;
            kept(&Value::Object(parts.spec.clone()), &object.spec, "spec").map_err(told)?;
        }
        if standing.is_none_or(|s| s.status != parts.status) {
            object = self
                .apply_status(shape, name, &object, parts)
                .await
                .map_err(told)?;
        }
        Ok(object.metadata.version())
    }

    /// The owner reference that an object lacks, if it ought to have one.
    async fn missing_owner(
        &self,
        shape: &Shape,
        name: &str,
        object: &Value,
    ) -> Result<Option<Value>, StoreError> {
        let mut owners = object["metadata"]["ownerReferences"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if !shape.owned_by_node || owners.iter().any(|owner| owner["kind"] == "Node") {
            return Ok(None);
        }
        if let Value::Array(missing) = owner::references(&self.server, name).await? {
            owners.extend(missing);
        }
        Ok(Some(Value::Array(owners)))
    }

    async fn pages(&self, kind: Kind) -> Result<List, Fault> {
        let shape = Shape::of(kind);
        let mut entries = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let request = kube::core::Request::new(shape.path()).list(&params);
            let page: Page = self.ask("list", shape.plural, request).await?;
            entries.extend(page.items.into_iter().map(|object| shape.entry(object)));
            if page.metadata.r#continue.is_empty() {
                // All pages are of one moment, that of the first.
                return Ok(List {
                    entries,
                    cursor: Cursor(page.metadata.resource_version),
                });
            }
            params = params.continue_token(&page.metadata.r#continue);
        }
    }

    /// What a caller is told of a fault with one record.
    fn told(&self, kind: Kind, name: &str, fault: Fault) -> StoreError {
        let name = name.to_owned();
        match fault {
            Fault::Exists => StoreError::AlreadyExists { kind, name },
            Fault::Conflict | Fault::NoObject => StoreError::Conflict { kind, name },
            Fault::Invalid { reason } => StoreError::Invalid(Invalid::new(
                format!("{kind} {name:?}"),
                "record",
                "",
                reason,
            )),
            fault => self.server.error(fault),
        }
    }

    /// Every call about leases ends here.
    fn no_leases(&self) -> StoreError {
        StoreError::Unsupported {
            store: self.server.describe.clone(),
            what: "liveness leases: the Node object says whether a node is there",
        }
    }
}

fn check(kind: Kind, name: &str) -> Result<(), Invalid> {
    // All are the names of objects.
    name.parse::<NodeName>().map(drop).map_err(|e| Invalid {
        object: kind.to_string(),
        ..e
    })
}

fn parsed(object: &Value) -> Result<Object, Fault> {
    serde_json::from_value(object.clone()).map_err(|e| Fault::Unavailable {
        reason: format!("an object that cannot be understood: {e}"),
        broken: false,
    })
}

/// Makes sure that the API server took everything.
fn kept(sent: &Value, got: &Value, part: &str) -> Result<(), Fault> {
    match dropped(sent, got) {
        None => Ok(()),
        Some(path) => Err(Fault::Denied {
            reason: format!(
                "it drops {part}{path}: its definitions are older than this release; \
                 install those of this release: kubectl apply -k deploy/crds"
            ),
        }),
    }
}

#[async_trait]
impl Store for KubeStore {
    fn describe(&self) -> String {
        self.server.describe.clone()
    }

    fn connectivity(&self) -> tokio::sync::watch::Receiver<Connectivity> {
        self.server.connectivity()
    }

    fn presence(&self) -> Presence {
        Presence::Nodes
    }

    async fn node_stands(&self, name: &str) -> Result<Option<bool>, StoreError> {
        owner::stands(&self.server, name).await.map(Some)
    }

    async fn node_labels(&self, name: &str) -> Result<BTreeMap<String, String>, StoreError> {
        owner::labels(&self.server, name).await
    }

    async fn announce_network(&self, name: &str) -> Result<(), StoreError> {
        owner::announce_network(&self.server, &self.manager, name).await
    }

    async fn node_cidrs(&self, name: &str) -> Result<Vec<Cidr>, StoreError> {
        owner::cidrs(&self.server, name).await
    }

    async fn publish_node_cidrs(&self, name: &str, cidrs: &[Cidr]) -> Result<(), StoreError> {
        owner::publish_cidrs(&self.server, &self.manager, name, cidrs).await
    }

    async fn adopt_block(
        &self,
        name: &str,
        value: &[u8],
        node: &str,
    ) -> Result<Version, StoreError> {
        check(Kind::Block, name)?;
        let parts = Parts::of(Kind::Block, name, value)?;
        let owners = owner::references(&self.server, node).await?;
        self.create_object(Shape::of(Kind::Block), name, &parts, Some(owners))
            .await
            .map_err(|fault| self.told(Kind::Block, name, fault))
    }

    async fn note(&self, note: &Note) -> Result<(), StoreError> {
        let told = events::tell(&self.server, &self.manager, note).await;
        told.map_err(|fault| self.told(note.kind, &note.name, fault))
    }

    async fn marks(&self, kind: Kind) -> Result<Vec<(String, Mark)>, StoreError> {
        let found = marks::list(&self.server, Shape::of(kind)).await;
        found.map_err(|fault| self.server.error(fault))
    }

    async fn set_mark(
        &self,
        kind: Kind,
        name: &str,
        mark: Option<&Mark>,
    ) -> Result<(), StoreError> {
        let set = marks::set(&self.server, &self.manager, Shape::of(kind), name, mark).await;
        set.map_err(|fault| self.told(kind, name, fault))
    }

    async fn pods(&self) -> Result<Option<Vec<PodRef>>, StoreError> {
        pods::list(&self.server).await.map(Some)
    }

    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        check(kind, name)?;
        let shape = Shape::of(kind);
        match self.read::<Object>(shape, name).await {
            Ok(object) => Ok(Some(shape.entry(object))),
            Err(Fault::NoObject) => Ok(None),
            Err(fault) => Err(self.told(kind, name, fault)),
        }
    }

    async fn list(&self, kind: Kind) -> Result<List, StoreError> {
        let mut outcome = self.pages(kind).await;
        if let Err(Fault::Expired) = outcome {
            // Compacted between two pages: once more from the first.
            outcome = self.pages(kind).await;
        }
        outcome.map_err(|fault| self.server.error(fault))
    }

    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        check(kind, name)?;
        if lease.is_some() {
            return Err(self.no_leases());
        }
        let shape = Shape::of(kind);
        let parts = Parts::of(kind, name, value)?;
        let owners = match shape.owned_by_node {
            true => Some(owner::references(&self.server, name).await?),
            false => None,
        };
        self.create_object(shape, name, &parts, owners)
            .await
            .map_err(|fault| self.told(kind, name, fault))
    }

    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        check(kind, name)?;
        if lease.is_some() {
            return Err(self.no_leases());
        }
        let parts = Parts::of(kind, name, value)?;
        self.update_object(kind, name, &parts, expected).await
    }

    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        check(kind, name)?;
        let shape = Shape::of(kind);
        let told = |fault| self.told(kind, name, fault);
        let Some((resource_version, _)) = expected.0.split_once('.') else {
            return Err(told(Fault::Conflict));
        };
        let params = DeleteParams::default().preconditions(Preconditions {
            resource_version: Some(resource_version.to_owned()),
            uid: None,
        });
        let request = kube::core::Request::new(shape.path()).delete(name, &params);
        let answer: Result<Value, Fault> = self.ask("delete", shape.plural, request).await;
        answer.map(drop).map_err(told)
    }

    async fn watch(
        &self,
        kind: Kind,
        from: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let shape = Shape::of(kind);
        if from.0.is_empty() || !from.0.bytes().all(|b| b.is_ascii_digit()) {
            return Err(StoreError::Compacted { cursor: from });
        }
        let range = Range {
            path: shape.path(),
            resource: shape.plural,
            name: None,
        };
        let server = self.server.clone();
        let begun = Watch::begin(server.clone(), range, from.0.clone()).await;
        let ended = move |fault, server: &Server| match fault {
            Fault::Expired => StoreError::Compacted {
                cursor: from.clone(),
            },
            fault => server.error(fault),
        };
        let watch = begun.map_err(|fault| ended(fault, &server))?;
        Ok(stream::unfold(Some(watch), move |watch| {
            let (ended, server) = (ended.clone(), server.clone());
            async move {
                let mut watch = watch?;
                Some(match watch.next().await {
                    Ok(Event::Put(object)) => (Ok(Change::Put(shape.entry(object))), Some(watch)),
                    Ok(Event::Gone(object)) => {
                        let name = object.metadata.name;
                        (Ok(Change::Delete { name }), Some(watch))
                    }
                    Err(fault) => (Err(ended(fault, &server)), None),
                })
            }
        })
        .boxed())
    }

    async fn grant_lease(&self, _ttl: Duration) -> Result<LeaseId, StoreError> {
        Err(self.no_leases())
    }

    async fn keep_alive(&self, _lease: &LeaseId) -> Result<(), StoreError> {
        Err(self.no_leases())
    }

    async fn revoke_lease(&self, _lease: &LeaseId) -> Result<(), StoreError> {
        Err(self.no_leases())
    }

    async fn lease_remaining(
        &self,
        _kind: Kind,
        _name: &str,
    ) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    async fn campaign(&self, election: &str, identity: &str) -> Result<Leadership, StoreError> {
        election::campaign(&self.server, &self.manager, election, identity).await
    }
}
