//! The common cases write any bytes under any name; the API server takes records only.
//! This store in between dresses the ones as the others, on names of its own.
//!
//! Which of the test's kinds is which resource is chosen by what a case does: most write
//! blocks over and over, of which only the state can change here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use tokio::sync::watch;
use viaduct_datastore::{
    Change, Connectivity, Cursor, Entry, Leadership, LeaseId, List, Presence, Store, StoreError,
    Version,
};
use viaduct_model::Kind;

use crate::api_server::ApiServer;

/// A store in disguise.
#[derive(Debug)]
pub struct Costume {
    /// The store itself.
    pub inner: Arc<dyn Store>,
    /// What all names of this test begin with.
    pub prefix: String,
    /// Where Nodes are made.
    pub server: Dressmaker,
}

/// The API server, for the Nodes that a node's records need.
pub struct Dressmaker(pub Arc<ApiServer>);

impl std::fmt::Debug for Dressmaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dressmaker")
    }
}

fn real(kind: Kind) -> Kind {
    match kind {
        Kind::Block => Kind::Pool,
        Kind::Pool => Kind::Claim,
        Kind::Claim => Kind::Block,
        Kind::Node => Kind::Node,
    }
}

fn test(kind: Kind) -> Kind {
    Kind::ALL.into_iter().find(|k| real(*k) == kind).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

impl Costume {
    /// The object's name. Blocks are named by addresses, which hold twelve letters.
    fn name(&self, kind: Kind, name: &str) -> String {
        if name.is_empty() || name.contains(['/', '.']) || name.len() > 200 {
            return name.to_owned();
        }
        let name = format!("{}{name}", self.prefix);
        if real(kind) != Kind::Block {
            return name;
        }
        assert!(name.len() <= 12, "{name} is too long for a block");
        let mut octets = [0u8; 16];
        octets[0] = 0xfd;
        octets[4..4 + name.len()].copy_from_slice(name.as_bytes());
        let cidr = viaduct_model::Cidr::host(std::net::Ipv6Addr::from(octets).into());
        cidr.record_name()
    }

    fn test_name(&self, kind: Kind, name: &str) -> Option<String> {
        let name = if real(kind) == Kind::Block {
            let cidr = viaduct_model::Cidr::from_record_name(name)?;
            let octets = cidr.first_bits().to_be_bytes();
            let letters = octets[4..].iter().copied().take_while(|b| *b != 0);
            String::from_utf8(letters.collect()).ok()?
        } else {
            name.to_owned()
        };
        name.strip_prefix(&self.prefix).map(str::to_owned)
    }

    fn dress(&self, kind: Kind, name: &str, value: &[u8]) -> Vec<u8> {
        let text = format!("x{}", hex(value));
        let record = match real(kind) {
            Kind::Pool => json!({
                "cidr": "10.0.0.0/16", "nodeSelector": {"text": text},
                "natOutgoing": true, "disabled": false,
            }),
            Kind::Block => {
                let cidr = viaduct_model::Cidr::from_record_name(&self.name(kind, name));
                json!({
                    "cidr": cidr.map(|c| c.to_string()), "pool": "p", "node": text,
                    "generation": 1, "state": "active",
                })
            }
            Kind::Node => json!({
                "incarnation": "i", "underlay": {"v4": "192.0.2.1"}, "backend": {"type": "ipip"},
                "overlay": {}, "mtu": 1480, "labels": {"text": text},
            }),
            Kind::Claim => json!({
                "incarnation": "i", "host": text, "agentVersion": "0",
                "wants": {"v4": 1, "v6": 0}, "blocks": {},
            }),
        };
        record.to_string().into_bytes()
    }

    fn undress(&self, kind: Kind, entry: Entry) -> Option<Entry> {
        let name = self.test_name(kind, &entry.name)?;
        let record: Value = serde_json::from_slice(&entry.value).unwrap();
        let text = match real(kind) {
            Kind::Pool => &record["nodeSelector"]["text"],
            Kind::Block => &record["node"],
            Kind::Node => &record["labels"]["text"],
            Kind::Claim => &record["host"],
        };
        let value = unhex(&text.as_str().unwrap()[1..]);
        Some(Entry {
            name,
            value,
            ..entry
        })
    }

    fn error(&self, e: StoreError) -> StoreError {
        let named = |kind: Kind, name: &str| {
            let kind = test(kind);
            (kind, self.test_name(kind, name).unwrap_or_default())
        };
        match e {
            StoreError::AlreadyExists { kind, name } => {
                let (kind, name) = named(kind, &name);
                StoreError::AlreadyExists { kind, name }
            }
            StoreError::Conflict { kind, name } => {
                let (kind, name) = named(kind, &name);
                StoreError::Conflict { kind, name }
            }
            e => e,
        }
    }
}

#[async_trait]
impl Store for Costume {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn connectivity(&self) -> watch::Receiver<Connectivity> {
        self.inner.connectivity()
    }

    fn presence(&self) -> Presence {
        self.inner.presence()
    }

    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Entry>, StoreError> {
        let entry = self.inner.get(real(kind), &self.name(kind, name)).await?;
        Ok(entry.and_then(|entry| self.undress(kind, entry)))
    }

    async fn list(&self, kind: Kind) -> Result<List, StoreError> {
        let list = self.inner.list(real(kind)).await?;
        let ours = |entry| self.undress(kind, entry);
        Ok(List {
            entries: list.entries.into_iter().filter_map(ours).collect(),
            cursor: list.cursor,
        })
    }

    async fn create(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let (value, object) = (self.dress(kind, name, value), self.name(kind, name));
        if matches!(real(kind), Kind::Node | Kind::Claim) && object != name {
            self.server.0.node(&object).await;
        }
        let created = self.inner.create(real(kind), &object, &value, lease).await;
        created.map_err(|e| self.error(e))
    }

    async fn update(
        &self,
        kind: Kind,
        name: &str,
        value: &[u8],
        expected: &Version,
        lease: Option<&LeaseId>,
    ) -> Result<Version, StoreError> {
        let (value, object) = (self.dress(kind, name, value), self.name(kind, name));
        let updated = self
            .inner
            .update(real(kind), &object, &value, expected, lease);
        updated.await.map_err(|e| self.error(e))
    }

    async fn delete(&self, kind: Kind, name: &str, expected: &Version) -> Result<(), StoreError> {
        let object = self.name(kind, name);
        let deleted = self.inner.delete(real(kind), &object, expected);
        deleted.await.map_err(|e| self.error(e))
    }

    async fn watch(
        &self,
        kind: Kind,
        from: Cursor,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let changes = self.inner.watch(real(kind), from).await?;
        let costume = Self {
            inner: self.inner.clone(),
            prefix: self.prefix.clone(),
            server: Dressmaker(self.server.0.clone()),
        };
        Ok(changes
            .filter_map(move |change| {
                let seen = match change {
                    Ok(Change::Put(entry)) => {
                        costume.undress(kind, entry).map(|e| Ok(Change::Put(e)))
                    }
                    Ok(Change::Delete { name }) => costume
                        .test_name(kind, &name)
                        .map(|name| Ok(Change::Delete { name })),
                    Err(e) => Some(Err(e)),
                };
                std::future::ready(seen)
            })
            .boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: &LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: &LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }

    async fn lease_remaining(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<Duration>, StoreError> {
        self.inner.lease_remaining(real(kind), name).await
    }

    async fn campaign(&self, election: &str, identity: &str) -> Result<Leadership, StoreError> {
        let election = format!("{}{election}", self.prefix);
        self.inner.campaign(&election, identity).await
    }
}
