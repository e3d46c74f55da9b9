//! What the demo found, as tables for people. Pure.

use viaduct_lab::Matrix;
use viaduct_lab::matrix::{NodeToPod, PodPair, Verdict};

use crate::output::table;

/// The tables of a matrix, and what stands below them.
pub(crate) fn tables(matrix: &Matrix) -> String {
    let (fits, beyond) = (
        format!("DF {}", matrix.mtu),
        format!("DF {}", matrix.mtu + 1),
    );
    let pods: Vec<_> = matrix.pods.iter().map(pod_row).collect();
    let nodes: Vec<_> = matrix.nodes.iter().map(node_row).collect();
    let pods = table(
        &[
            "FROM POD",
            "ADDRESS",
            "TO POD",
            "ADDRESS",
            "PING",
            &fits,
            &beyond,
            "TCP 1 MB",
            "SOURCE",
            &format!("{} PACKETS", matrix.carriage.name().to_uppercase()),
        ],
        &pods,
    );
    let nodes = table(
        &["FROM NODE", "TO POD", "ADDRESS", "PING", "TCP 1 MB"],
        &nodes,
    );
    format!(
        "{pods}\n{nodes}\n\
         On the underlay: {} packets of pods {}, {}.\n\
         Agents: {}.\n",
        matrix.carried(),
        matrix.carriage.clause(),
        match &matrix.wire {
            Ok(()) => matrix.carriage.no_other(),
            Err(_) => "FAILED",
        },
        match &matrix.capabilities {
            Ok(()) => "CAP_NET_ADMIN and no other capability",
            Err(_) => "FAILED, not CAP_NET_ADMIN alone",
        },
    )
}

fn pod_row(pair: &PodPair) -> Vec<String> {
    vec![
        pair.from.name.clone(),
        pair.from.ip.to_string(),
        pair.to.name.clone(),
        pair.to.ip.to_string(),
        shown(&pair.ping, "ok"),
        shown(&pair.whole, "ok"),
        shown(&pair.too_long, "refused"),
        shown(&pair.tcp, "ok both ways"),
        shown(&pair.source, "unchanged"),
        match pair.on_wire {
            Some(0) => "FAILED".to_owned(),
            Some(packets) => packets.to_string(),
            None => "same node".to_owned(),
        },
    ]
}

fn node_row(pair: &NodeToPod) -> Vec<String> {
    vec![
        pair.from.clone(),
        pair.to.name.clone(),
        pair.to.ip.to_string(),
        shown(&pair.ping, "ok"),
        shown(&pair.tcp, "ok both ways"),
    ]
}

fn shown(verdict: &Verdict, good: &str) -> String {
    if verdict.is_ok() { good } else { "FAILED" }.to_owned()
}
