//! Events: what `kubectl describe` and `kubectl get events` show of a record.

use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::fault::Fault;
use super::resource::{API_VERSION, Object, Shape};
use super::server::{Call, Server};
use crate::store::Note;

/// Events about objects without a namespace are in this one.
const NAMESPACE: &str = "default";

/// Tells of something that happened to a record; nothing when the record is gone.
pub(super) async fn tell(server: &Server, manager: &str, note: &Note) -> Result<(), Fault> {
    let shape = Shape::of(note.kind);
    let request = kube::core::Request::new(shape.path()).get(&note.name, &Default::default());
    let object: Object = match server.call(&Call::new("get", shape.plural, request)?).await {
        Ok(object) => object,
        Err(Fault::NoObject) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    let event = event(note, manager, &object.metadata.uid, Timestamp::now());
    let path = format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events");
    let body = event.to_string().into_bytes();
    let request = kube::core::Request::new(path).create(&PostParams::default(), body);
    let told: Value = server
        .call(&Call::new("create", "events", request)?)
        .await?;
    drop(told);
    Ok(())
}

fn event(note: &Note, manager: &str, uid: &str, now: Timestamp) -> Value {
    // The name only has to be another one each time.
    let name = format!("{}.{:x}", note.name, now.as_nanosecond());
    // The API server takes no longer ones.
    let text: String = note.text.chars().take(1000).collect();
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "eventTime": format!("{now:.6}"),
        "reportingController": format!("viaduct.dev/{manager}"),
        "reportingInstance": manager,
        "action": note.reason,
        "reason": note.reason,
        "type": if note.warning { "Warning" } else { "Normal" },
        "note": text,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": Shape::of(note.kind).kind,
            "name": note.name,
            "uid": uid,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_its_object_and_stays_short() {
        let note = Note {
            kind: viaduct_model::Kind::Pool,
            name: "default".into(),
            reason: "PoolExhausted",
            text: "x".repeat(5000),
            warning: true,
        };
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let event = event(&note, "viaduct-controller", "u", now);
        assert_eq!(event["eventTime"], "2026-01-02T03:04:05.000000Z");
        assert_eq!(event["regarding"]["kind"], "AddressPool");
        assert_eq!(event["note"].as_str().unwrap().len(), 1000);
    }
}
