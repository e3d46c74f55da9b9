//! What agents and controllers may ask of the API server, and what they did ask.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::rollout::NAMESPACE;
use crate::cluster::{Cluster, Deployed, NODES};

/// Permissions that the checks here need not come to use, with the reason.
const RARE: [(&str, &str); 3] = [
    ("delete addressblocks", "a quarantine lasts five minutes"),
    (
        "patch addressblocks/status",
        "nobody wrote a wrong block by hand",
    ),
    (
        "update addressblocks",
        "a node that is back soon finds its blocks untouched",
    ),
];

/// Whether the records are in the Kubernetes API at all.
pub(super) fn elsewhere() -> bool {
    Deployed::chosen() == Deployed::Etcd
}

/// With the token of an agent, all that another node owns is tried.
pub(super) fn stolen_token(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok("no agent has a token".into());
    }
    let (own, other) = (NODES[0], NODES[1]);
    let bound = format!("--bound-object-name={own}");
    let create = ["-n", NAMESPACE, "create", "token", "viaduct-agent"];
    let token = cluster.kubectl(&[&create[..], &["--bound-object-kind=Node", &bound]].concat())?;
    let stranger = cluster.kubectl(&create)?;
    let write = |token: &str, path: &str, what: &str| {
        let url = format!("{path}?fieldManager=thief&force=true");
        cluster.patch_as(token.trim(), &url, what)
    };
    let claim = |of: &str| {
        let what = format!(
            r#"{{"apiVersion":"viaduct.dev/v1alpha1","kind":"BlockClaim","metadata":{{"name":"{of}"}},"status":{{}}}}"#
        );
        let path = format!("/apis/viaduct.dev/v1alpha1/blockclaims/{of}/status");
        (path, what)
    };
    let node = |of: &str, condition: &str| {
        let what = format!(
            r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{of}"}},"status":{{"conditions":[
               {{"type":"{condition}","status":"False","reason":"Stolen"}}]}}}}"#
        );
        (format!("/api/v1/nodes/{of}/status"), what)
    };
    let (path, what) = claim(own);
    let said = write(&token, &path, &what)?;
    ensure!(said.contains("\"BlockClaim\""), "its own claim: {said}");
    for (token, (path, what), says) in [
        (&token, claim(other), "its own node's only"),
        (
            &token,
            node(other, "NetworkUnavailable"),
            "its own node's only",
        ),
        (&token, node(own, "Ready"), "NetworkUnavailable only"),
        (&stranger, claim(own), "bound to no node"),
    ] {
        let said = write(token, &path, &what)?;
        ensure!(said.contains(says), "{path}: {said}");
    }
    Ok(String::new())
}

/// Every call was allowed, and every permission has been used.
pub(super) fn audited(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok("nobody talks to the API server".into());
    }
    let (mut unused, mut denied) = (Vec::new(), BTreeSet::new());
    let mut calls = 0;
    for who in ["viaduct-agent", "viaduct-controller"] {
        let user = format!("system:serviceaccount:{NAMESPACE}:{who}");
        let (mut allowed, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for line in cluster.audit_log()?.lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if event["user"]["username"] != user.as_str() {
                continue;
            }
            calls += 1;
            let forbidden = event["annotations"]["authorization.k8s.io/decision"] == "forbid";
            let of = if forbidden {
                &mut refused
            } else {
                &mut allowed
            };
            of.insert(call(&event));
        }
        // Right after its start the API server may not know its own rules yet.
        let really = refused.difference(&allowed);
        denied.extend(really.map(|call| format!("{who}: {call}")));
        let granted = granted(cluster, who)?;
        let rare = |call: &String| RARE.iter().any(|(rare, _)| rare == call);
        let left = granted.difference(&allowed).filter(|call| !rare(call));
        unused.extend(left.map(|call| format!("{who}: {call}")));
    }
    ensure!(
        denied.is_empty() && unused.is_empty(),
        "denied: {denied:?}; allowed and never used: {unused:?}"
    );
    ensure!(calls > 0, "the audit log knows no call of Viaduct's");
    Ok(format!("{calls} calls"))
}

/// Verb and resource of an audited call.
fn call(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(sub) = object["subresource"].as_str() {
        resource = format!("{resource}/{sub}");
    }
    format!("{} {resource}", text(&event["verb"]))
}

/// What the roles of that name allow, as verb and resource.
fn granted(cluster: &Cluster, who: &str) -> Result<BTreeSet<String>> {
    let mut roles = vec![cluster.get(&["clusterrole", who])?];
    // Only the controller has one in the namespace.
    roles.extend(cluster.get(&["-n", NAMESPACE, "role", who]).ok());
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut granted = BTreeSet::new();
    for role in &roles {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    granted.insert(format!("{verb} {resource}"));
                }
            }
        }
    }
    Ok(granted)
}
