//! Conditions that say what is wrong with a record, for people.
//!
//! Applied to the status subresource under a field manager of their own, so that neither
//! the record's status nor what others say there is touched (docs/adr/0104).

use kube::api::{Patch, PatchParams};
use kube::core::params::ListParams;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::resource::{API_VERSION, PageMetadata, Shape};
use super::server::{Call, Server};
use crate::store::Mark;

/// The condition's type.
const VALID: &str = "Valid";

/// How many objects are read at a time.
const PAGE: u32 = 500;

#[derive(Debug, Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Marked>,
}

#[derive(Debug, Deserialize)]
struct Marked {
    metadata: Name,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Name {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    reason: String,
    message: String,
}

/// The names of all records of a kind that are marked, with the marks.
pub(super) async fn list(server: &Server, shape: &Shape) -> Result<Vec<(String, Mark)>, Fault> {
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let request = kube::core::Request::new(shape.path()).list(&params);
        let page: Page = server
            .call(&Call::new("list", shape.plural, request)?)
            .await?;
        found.extend(page.items.into_iter().filter_map(|object| {
            let mut conditions = object.status.conditions.into_iter();
            let mark = conditions.find(|condition| condition.r#type == VALID)?;
            let (reason, text) = (mark.reason, mark.message);
            Some((object.metadata.name, Mark { reason, text }))
        }));
        if page.metadata.r#continue.is_empty() {
            return Ok(found);
        }
        params = params.continue_token(&page.metadata.r#continue);
    }
}

/// Makes a record's mark this one, or takes it away. Nothing when the record is gone.
pub(super) async fn set(
    server: &Server,
    manager: &str,
    shape: &Shape,
    name: &str,
    mark: Option<&Mark>,
) -> Result<(), Fault> {
    let patch = Patch::Apply(body(shape, name, mark, &super::owner::now()));
    let params = PatchParams::apply(&format!("{manager}-conditions")).force();
    let request =
        kube::core::Request::new(shape.path()).patch_subresource("status", name, &params, &patch);
    let resource = format!("{}/status", shape.plural);
    match server
        .call::<Value>(&Call::new("patch", resource, request)?)
        .await
    {
        Ok(_) | Err(Fault::NoObject) => Ok(()),
        Err(fault) => Err(fault),
    }
}

fn body(shape: &Shape, name: &str, mark: Option<&Mark>, now: &str) -> Value {
    // What is no longer applied is taken away.
    let status = mark.map_or(json!({}), |mark| {
        // The definitions allow no more.
        let text: String = mark.text.chars().take(8000).collect();
        json!({ "conditions": [{
            "type": VALID, "status": "False", "reason": mark.reason,
            "message": text, "lastTransitionTime": now,
        }] })
    });
    json!({
        "apiVersion": API_VERSION,
        "kind": shape.kind,
        "metadata": { "name": name },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_model::Kind;

    #[test]
    fn a_mark_is_a_condition_and_no_mark_is_none() {
        let mark = Mark {
            reason: "Overlaps".into(),
            text: "why".into(),
        };
        let shape = Shape::of(Kind::Block);
        let marked = body(shape, "10.0.0.0-26", Some(&mark), "2026-01-02T03:04:05Z");
        let condition = &marked["status"]["conditions"][0];
        assert_eq!(
            (
                &condition["type"],
                &condition["status"],
                &condition["reason"]
            ),
            (&json!("Valid"), &json!("False"), &json!("Overlaps"))
        );
        assert_eq!(body(shape, "x", None, "t")["status"], json!({}));
    }
}
