//! The pods of the cluster, as `viaductctl ipam check` compares them with ledgers. Agents and
//! controllers never ask for them, and may not.

use kube::core::params::ListParams;
use serde::Deserialize;

use super::PAGE;
use super::server::{Call, Server};
use crate::store::{PodRef, StoreError};

#[derive(Debug, Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PageMetadata {
    r#continue: String,
}

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    host_network: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: String,
}

/// All pods that have, or will have, a network of their own. Those that have ended keep
/// their addresses in the record only.
pub(super) async fn list(server: &Server) -> Result<Vec<PodRef>, StoreError> {
    let mut pods = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let request = kube::core::Request::new("/api/v1/pods").list(&params);
        let page: Page = async {
            let call = Call::new("list", "pods", request)?;
            server.call(&call).await
        }
        .await
        .map_err(|fault| server.error(fault))?;
        pods.extend(page.items.into_iter().filter_map(of_network));
        if page.metadata.r#continue.is_empty() {
            return Ok(pods);
        }
        params = params.continue_token(&page.metadata.r#continue);
    }
}

fn of_network(pod: Pod) -> Option<PodRef> {
    let ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
    if pod.spec.host_network || ended || pod.spec.node_name.is_empty() {
        return None;
    }
    let ips = pod.status.pod_ips.iter();
    Some(PodRef {
        name: format!("{}/{}", pod.metadata.namespace, pod.metadata.name),
        node: pod.spec.node_name,
        addresses: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_hosts_network_and_those_that_have_ended_are_left_out() {
        let page = serde_json::json!({
            "metadata": {},
            "items": [
                {"metadata": {"name": "a", "namespace": "d"}, "spec": {"nodeName": "n1"},
                 "status": {"phase": "Running", "podIPs": [{"ip": "10.64.0.5"}]}},
                {"metadata": {"name": "b", "namespace": "d"},
                 "spec": {"nodeName": "n1", "hostNetwork": true}},
                {"metadata": {"name": "c", "namespace": "d"}, "spec": {"nodeName": "n1"},
                 "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.64.0.6"}]}},
                {"metadata": {"name": "e", "namespace": "d"}, "spec": {}},
            ],
        });
        let page: Page = serde_json::from_value(page).unwrap();
        let pods: Vec<PodRef> = page.items.into_iter().filter_map(of_network).collect();
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].name, "d/a");
        assert_eq!(pods[0].addresses.len(), 1);
    }
}
