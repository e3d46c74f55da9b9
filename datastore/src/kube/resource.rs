//! Records as objects of the API server, and back. Pure.
//!
//! What is spec and what status differs from kind to kind and is said by a [`Shape`] in
//! each kind's file under `crd`; everything else is common.

use serde::Deserialize;
use serde_json::{Value, json};
use viaduct_model::{Invalid, Kind};

use super::crd;
use crate::store::{Entry, Version};

/// The fields of a JSON object.
pub(super) type Map = serde_json::Map<String, Value>;

/// The API group and version of all kinds.
pub(super) const API_VERSION: &str = "viaduct.dev/v1alpha1";

/// How the records of one kind are laid out as objects.
#[derive(Debug)]
pub(super) struct Shape {
    /// The object's kind.
    pub(super) kind: &'static str,
    /// The plural in paths.
    pub(super) plural: &'static str,
    /// Whether an object belongs to the Node of its name, and goes when that does.
    pub(super) owned_by_node: bool,
    /// Takes the fields out of a record that are the object's status; the rest is spec.
    pub(super) split: fn(&mut Map) -> Map,
    /// Puts them back.
    pub(super) join: fn(&mut Map, Map),
}

impl Shape {
    /// The shape of a kind.
    pub(super) fn of(kind: Kind) -> &'static Self {
        match kind {
            Kind::Pool => &crd::POOL,
            Kind::Block => &crd::BLOCK,
            Kind::Node => &crd::NODE,
            Kind::Claim => &crd::CLAIM,
        }
    }

    /// The path of all objects of the kind.
    pub(super) fn path(&self) -> String {
        format!("/apis/{API_VERSION}/{}", self.plural)
    }

    /// A new object.
    pub(super) fn object(&self, name: &str, parts: &Parts, owners: Option<Value>) -> Value {
        let mut metadata = json!({ "name": name });
        if let Some(owners) = owners {
            metadata["ownerReferences"] = owners;
        }
        json!({
            "apiVersion": API_VERSION,
            "kind": self.kind,
            "metadata": metadata,
            "spec": parts.spec,
        })
    }

    /// An object that says its status and nothing else.
    pub(super) fn status(&self, name: &str, resource_version: &str, status: &Map) -> Value {
        json!({
            "apiVersion": API_VERSION,
            "kind": self.kind,
            "metadata": { "name": name, "resourceVersion": resource_version },
            "status": status,
        })
    }

    /// The record that an object holds.
    pub(super) fn entry(&self, object: Object) -> Entry {
        let version = object.metadata.version();
        let value = match object.spec {
            Value::Object(mut record) => {
                if let Value::Object(status) = object.status {
                    (self.join)(&mut record, status);
                }
                Value::Object(record)
            }
            // No record, which whoever decodes it will say.
            other => other,
        };
        Entry {
            name: object.metadata.name,
            value: value.to_string().into_bytes(),
            version,
        }
    }
}

/// A record as spec and status.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parts {
    pub(super) spec: Map,
    pub(super) status: Map,
}

impl Parts {
    /// Splits a record that was encoded as JSON.
    pub(super) fn of(kind: Kind, name: &str, value: &[u8]) -> Result<Self, Invalid> {
        let mut spec: Map = serde_json::from_slice(value).map_err(|e| {
            let shown: String = String::from_utf8_lossy(value).chars().take(80).collect();
            Invalid::new(
                format!("{kind} {name:?}"),
                "record",
                shown,
                format!("the API server takes records as JSON objects only ({e})"),
            )
        })?;
        let status = (Shape::of(kind).split)(&mut spec);
        Ok(Self { spec, status })
    }
}

/// As much of an object as the store reads.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Value,
    #[serde(default)]
    pub(super) status: Value,
}

/// As much of an object's metadata as the store reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
}

impl Metadata {
    /// The resource version, and which object it is of: in a cluster that was rebuilt
    /// the versions begin anew.
    pub(super) fn version(&self) -> Version {
        let uid = self.uid.get(..8).unwrap_or(&self.uid);
        Version(format!("{}.{uid}", self.resource_version))
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMetadata,
    pub(super) items: Vec<Object>,
}

/// Where a page ends.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: String,
    pub(super) r#continue: String,
}

/// The first field of `sent` that `got` lacks, as a path. The API server drops without a
/// word what an older definition does not name.
pub(super) fn dropped(sent: &Value, got: &Value) -> Option<String> {
    match (sent, got) {
        (Value::Object(sent), Value::Object(got)) => sent.iter().find_map(|(key, value)| {
            let inner = match got.get(key) {
                Some(there) => dropped(value, there)?,
                // Nothing to lose.
                None if is_empty(value) => return None,
                None => String::new(),
            };
            Some(format!(".{key}{inner}"))
        }),
        (Value::Array(sent), Value::Array(got)) => sent
            .iter()
            .zip(got)
            .find_map(|(sent, got)| Some(format!("[]{}", dropped(sent, got)?))),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(kind: Kind, record: &Value) -> Value {
        let parts = Parts::of(kind, "x", record.to_string().as_bytes()).unwrap();
        let object = json!({
            "metadata": { "name": "x", "uid": "0123456789", "resourceVersion": "7" },
            "spec": parts.spec, "status": parts.status,
        });
        let object: Object = serde_json::from_value(object).unwrap();
        let entry = Shape::of(kind).entry(object);
        assert_eq!(
            (entry.name.as_str(), entry.version.0.as_str()),
            ("x", "7.01234567")
        );
        serde_json::from_slice(&entry.value).unwrap()
    }

    #[test]
    fn records_come_back_as_they_were() {
        let claim = json!({
            "incarnation": "i", "wants": {"v4": 1, "v6": 0}, "newer": [1],
            "blocks": {"10.0.0.0-26": {"used": 3, "free": 61}, "10.0.1.0-26": {"used": 1, "free": 63}},
            "conditions": [{"type": "Ready"}],
        });
        assert_eq!(there_and_back(Kind::Claim, &claim), claim);
        let pool =
            json!({"cidr": "fd00::/48", "status": {"blocksTotal": u64::MAX, "blocksFree": 5}});
        assert_eq!(there_and_back(Kind::Pool, &pool), pool);
        for kind in [Kind::Pool, Kind::Block, Kind::Node] {
            let plain = json!({"cidr": "10.0.0.0/16"});
            assert_eq!(there_and_back(kind, &plain), plain);
        }
    }

    #[test]
    fn a_claims_status_has_sums_for_people_and_its_spec_no_counts() {
        let claim = json!({
            "wants": {"v4": 1},
            "blocks": {"a": {"used": 3, "free": 61}, "b": {"used": 1, "free": 63}},
        });
        let parts = Parts::of(Kind::Claim, "x", claim.to_string().as_bytes()).unwrap();
        assert_eq!(Value::Object(parts.spec), json!({"wants": {"v4": 1}}));
        assert_eq!(
            (&parts.status["owned"], &parts.status["usage"]),
            (&json!(2), &json!("4/124"))
        );
    }

    #[test]
    fn counts_fit_the_api_servers_integers() {
        let pool = json!({"status": {"blocksTotal": u64::MAX, "blocksFree": 5}});
        let parts = Parts::of(Kind::Pool, "x", pool.to_string().as_bytes()).unwrap();
        assert_eq!(parts.status["blocksTotal"], json!(i64::MAX));
        assert_eq!(parts.status["blocksFree"], json!(5));
    }

    #[test]
    fn a_pools_status_says_how_many_blocks_are_used_where_they_can_be_counted() {
        let used = |total: u64, free: u64| {
            let pool = json!({"status": {"blocksTotal": total, "blocksFree": free}});
            assert_eq!(there_and_back(Kind::Pool, &pool), pool);
            let parts = Parts::of(Kind::Pool, "x", pool.to_string().as_bytes()).unwrap();
            parts.status.get("blocksUsed").cloned()
        };
        assert_eq!(used(1024, 1021), Some(json!(3)));
        assert_eq!(used(u64::MAX, 5), None);
    }

    #[test]
    fn what_is_no_object_is_refused_by_name() {
        for bad in [&b"\xff"[..], b"7", b"{"] {
            let refused = Parts::of(Kind::Pool, "x", bad).unwrap_err();
            assert_eq!(refused.object, "pool \"x\"");
        }
    }

    #[test]
    fn what_the_server_dropped_is_found() {
        let sent = json!({"a": {"b": [{"c": 1, "d": 2}], "none": []}});
        assert_eq!(dropped(&sent, &sent), None);
        let defaults = json!({"a": {"b": [{"c": 1, "d": 2, "e": 0}], "f": {}}, "g": true});
        assert_eq!(dropped(&sent, &defaults), None);
        let old = json!({"a": {"b": [{"c": 1}]}});
        assert_eq!(dropped(&sent, &old).as_deref(), Some(".a.b[].d"));
        assert_eq!(dropped(&sent, &json!({})).as_deref(), Some(".a"));
    }
}
