//! What was found between all pods, as one small table. Pure.

use viaduct_lab::Matrix;
use viaduct_lab::matrix::PodPair;

/// A row for each pod, a column for each pod that it reaches or not.
pub(crate) fn table(matrix: &Matrix) -> String {
    let mut names: Vec<&str> = matrix.pods.iter().map(|p| p.from.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut lines = vec![row("FROM POD \\ TO", "ADDRESS", names.iter().copied())];
    for from in &names {
        let of = |to: &str| {
            let pair = matrix
                .pods
                .iter()
                .find(|p| p.from.name == *from && p.to.name == to);
            pair.map_or("", cell)
        };
        let address = matrix.pods.iter().find(|p| p.from.name == *from);
        let address = address.map_or(String::new(), |pair| pair.from.ip.to_string());
        lines.push(row(from, &address, names.iter().map(|to| of(to))));
    }
    lines.push(format!(
        "ok: ping, {} bytes whole and {} refused, 1 MB over TCP there and back by hash, source \
         unchanged.\nNodes to pods: {} of {} ok. On the wire: {} packets of pods {}, {}. \
         Agents: {}.",
        matrix.mtu,
        matrix.mtu + 1,
        matrix
            .nodes
            .iter()
            .filter(|n| n.ping.is_ok() && n.tcp.is_ok())
            .count(),
        matrix.nodes.len(),
        matrix.carried(),
        matrix.carriage.clause(),
        if matrix.wire.is_ok() {
            matrix.carriage.no_other()
        } else {
            "FAILED"
        },
        if matrix.capabilities.is_ok() {
            "CAP_NET_ADMIN and no other capability"
        } else {
            "FAILED, not CAP_NET_ADMIN alone"
        },
    ));
    lines.join("\n")
}

fn cell(pair: &PodPair) -> &'static str {
    let checks = [
        &pair.ping,
        &pair.whole,
        &pair.too_long,
        &pair.tcp,
        &pair.source,
    ];
    if checks.into_iter().all(Result::is_ok) {
        "ok"
    } else {
        "FAILED"
    }
}

fn row<'a>(first: &str, second: &str, cells: impl Iterator<Item = &'a str>) -> String {
    let cells: String = cells.map(|cell| format!("{cell:8}")).collect();
    format!("{first:15}{second:14}{cells}")
        .trim_end()
        .to_owned()
}
