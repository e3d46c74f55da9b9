//! Ledgers and kernels beside the pods of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use viaduct_datastore::PodRef;

use super::{Facts, Finding, Holder, Repair, Sort};

/// What contradicts the pods as the cluster knows them.
pub(super) fn of_pods(facts: &Facts, holders: &BTreeMap<IpAddr, Vec<Holder<'_>>>) -> Vec<Finding> {
    let Some(pods) = &facts.pods else {
        return Vec::new();
    };
    let pools = || facts.snapshot.pools.iter().map(|pool| pool.record.cidr);
    let looked_at = |node: &str| facts.nodes.get(node).is_some_and(Result::is_ok);
    let mut findings = Vec::new();
    let mut by_address: BTreeMap<IpAddr, Vec<&PodRef>> = BTreeMap::new();
    for pod in pods {
        for address in &pod.addresses {
            if pools().any(|pool| pool.contains(*address)) {
                by_address.entry(*address).or_default().push(pod);
            }
        }
    }
    for (address, pods) in &by_address {
        if pods.len() > 1 {
            let names: Vec<String> = pods
                .iter()
                .map(|pod| format!("{} on node {}", pod.name, pod.node))
                .collect();
            findings.push(Finding {
                sort: Sort::Duplicate,
                subject: format!("pods/{address}"),
                text: format!(
                    "address {address} is that of {} pods: {}",
                    pods.len(),
                    names.join("; ")
                ),
                repair: pods
                    .iter()
                    .skip(1)
                    .map(|pod| delete_pod(&pod.name))
                    .collect(),
            });
        }
        for pod in pods.iter().filter(|pod| looked_at(&pod.node)) {
            let on_node = holders.get(address).into_iter().flatten();
            let mut on_node = on_node.filter(|holder| holder.node == pod.node);
            if on_node.next().is_none() {
                findings.push(Finding {
                    sort: Sort::Stranger,
                    subject: format!("pods/{}/{address}", pod.name),
                    text: format!(
                        "pod {} on node {} has address {address}, which the ledger there does not \
                         know",
                        pod.name, pod.node
                    ),
                    repair: vec![delete_pod(&pod.name)],
                });
            }
        }
    }
    let there: BTreeSet<(&str, &str)> = pods
        .iter()
        .map(|pod| (pod.node.as_str(), pod.name.as_str()))
        .collect();
    for (address, holders) in holders {
        for holder in holders {
            let Some(pod) = &holder.recorded.endpoint.pod else {
                continue;
            };
            if !there.contains(&(holder.node, pod.as_str())) {
                findings.push(Finding {
                    sort: Sort::Leak,
                    subject: format!("pods/{}/{address}", holder.node),
                    text: format!(
                        "address {address} of {} is taken, and there is no such pod",
                        holder.name()
                    ),
                    repair: vec![holder.release(*address)],
                });
            }
        }
    }
    findings
}

fn delete_pod(name: &str) -> Repair {
    let (namespace, pod) = name.split_once('/').unwrap_or(("default", name));
    Repair::Here(format!("kubectl --namespace {namespace} delete pod {pod}"))
}
