//! Whether another Viaduct looks after this cluster: its controllers' Lease lies in
//! another namespace, was there before ours, and is renewed.
//!
//! Called by the election, before it takes our Lease and after. A Lease that nobody renews
//! is of an installation that is gone; that is judged by our own clock (docs/adr/0105).

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::core::params::ListParams;
use serde::Deserialize;

use super::fault::Fault;
use super::server::{Call, Server};

/// Leases of others that nobody renews, as namespace and resource version.
pub(super) type Dead = BTreeSet<(String, String)>;

/// How long a Lease of another's is looked at.
const PATIENCE: Duration = Duration::from_secs(8);
const GLANCE: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
struct Leases {
    items: Vec<Lease>,
}

/// What is known of the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// None of them is there; those Leases are of nobody.
    Alone(Dead),
    /// One is, in this namespace.
    Second(String),
}

/// Looks for another installation, as long as it takes to be sure.
pub(super) async fn look(server: &Server, name: &str) -> Result<Verdict, Fault> {
    let first = held_before_ours(&list(server, name).await?, &server.namespace);
    let mut waited = Duration::ZERO;
    loop {
        if first.is_empty() || waited >= PATIENCE {
            return Ok(Verdict::Alone(first));
        }
        tokio::time::sleep(GLANCE).await;
        waited += GLANCE;
        if let Some(theirs) = renewed(server, name, &first).await? {
            return Ok(Verdict::Second(theirs));
        }
    }
}

/// The namespace of a Lease that is held and was not among `dead`, if there is one.
pub(super) async fn renewed(
    server: &Server,
    name: &str,
    dead: &Dead,
) -> Result<Option<String>, Fault> {
    let now = held_before_ours(&list(server, name).await?, &server.namespace);
    Ok(now
        .difference(dead)
        .next()
        .map(|(theirs, _)| theirs.clone()))
}

/// The Leases of that name in all namespaces.
async fn list(server: &Server, name: &str) -> Result<Vec<Lease>, Fault> {
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    let request = kube::core::Request::new("/apis/coordination.k8s.io/v1/leases").list(&params);
    let leases: Leases = server.call(&Call::new("list", "leases", request)?).await?;
    Ok(leases.items)
}

/// Those that somebody else holds and that were there before ours. By the API server's
/// clock alone, and where that says nothing by name, so that of two just one stands aside.
fn held_before_ours(leases: &[Lease], ours: &str) -> Dead {
    let namespace = |lease: &Lease| lease.metadata.namespace.clone().unwrap_or_default();
    let made = |lease: &Lease| lease.metadata.creation_timestamp.clone().map(|time| time.0);
    let our = leases.iter().find(|lease| namespace(lease) == ours);
    let held = |lease: &&Lease| {
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref());
        holder.is_some_and(|holder| !holder.is_empty())
    };
    let before = |lease: &&Lease| {
        our.is_none_or(|our| (made(lease), namespace(lease)) < (made(our), ours.to_owned()))
    };
    leases
        .iter()
        .filter(|lease| namespace(lease) != ours)
        .filter(held)
        .filter(before)
        .map(|lease| {
            let version = lease.metadata.resource_version.clone();
            (namespace(lease), version.unwrap_or_default())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(namespace: &str, made: &str, holder: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "viaduct-controller", "namespace": namespace,
                "creationTimestamp": made, "resourceVersion": "7"},
            "spec": {"holderIdentity": holder},
        }))
        .unwrap()
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T00:00:01Z";

    fn before_b(leases: &[Lease]) -> Vec<String> {
        let held = held_before_ours(leases, "b");
        held.into_iter().map(|(namespace, _)| namespace).collect()
    }

    #[test]
    fn who_was_there_first_leads_and_of_two_at_once_just_one() {
        let none: [String; 0] = [];
        assert_eq!(before_b(&[lease("a", LATE, "x")]), ["a"]);
        assert_eq!(
            before_b(&[lease("a", LATE, "x"), lease("b", EARLY, "y")]),
            none
        );
        let same = [lease("a", EARLY, "x"), lease("b", EARLY, "y")];
        assert_eq!(before_b(&same), ["a"]);
        assert!(held_before_ours(&same, "a").is_empty());
        // Nobody holds it: it was given up.
        assert_eq!(before_b(&[lease("a", EARLY, "")]), none);
    }
}
