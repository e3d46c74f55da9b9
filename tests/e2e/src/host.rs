//! A whole host in text: everything that a network program could have left behind.

use anyhow::{Result, ensure};
use viaduct_lab::Node;

/// What `ip`, `bridge`, `nft` and `sysctl` show of a node, one line each with its
/// source, in a fixed order; but for what ticks by itself.
///
/// # Errors
/// When it cannot be listed.
pub fn everything(node: &Node) -> Result<Vec<String>> {
    let dumps: [(&str, &[&str]); 11] = [
        ("ip", &["-d", "-o", "link", "show"]),
        ("ip", &["-o", "addr", "show"]),
        ("ip", &["-d", "route", "show", "table", "all"]),
        ("ip", &["-6", "-d", "route", "show", "table", "all"]),
        ("ip", &["rule", "show"]),
        ("ip", &["-6", "rule", "show"]),
        ("ip", &["neigh", "show", "nud", "permanent"]),
        ("ip", &["nexthop", "show"]),
        ("bridge", &["fdb", "show"]),
        ("nft", &["-s", "list", "ruleset"]),
        ("sysctl", &["-a", "-e", "--pattern", "^net\\."]),
    ];
    let mut lines = Vec::new();
    for (program, args) in dumps {
        let source = format!("{program} {}", args.join(" "));
        let text = node.run(program, args)?;
        lines.extend(
            text.lines()
                .filter(|line| !ticks(line))
                .map(|line| format!("{source}: {}", line.trim())),
        );
    }
    ensure!(lines.len() > 100, "that is no whole host: {lines:#?}");
    lines.sort();
    Ok(lines)
}

/// Counters and the like, which change while nobody does anything.
fn ticks(line: &str) -> bool {
    let key = line.split(' ').next().unwrap_or_default();
    [
        "nf_conntrack_count",
        "random",
        "entropy",
        "tcp_fastopen_key",
    ]
    .iter()
    .any(|part| key.contains(part))
}

/// What is in one list and not in the other, marked `-` and `+`.
pub fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line));
    let new = after.iter().filter(|line| !before.contains(line));
    gone.map(|line| format!("- {line}"))
        .chain(new.map(|line| format!("+ {line}")))
        .collect()
}
