//! `viaductctl ipam check`: two looks at everything, and what lasts.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use viaduct_datastore::Records;

use super::compare::{self, Facts, Finding, Repair, Sort};
use super::{CheckArgs, ReachArgs, gather};
use crate::output::{self, Format};
use crate::snapshot::Snapshot;

/// How long after the first look comes the second: longer than an ADD or DEL that is not
/// stuck, and than a controller's answer.
const BETWEEN: Duration = Duration::from_secs(3);

/// Compares, and says with which code to exit.
pub(super) async fn run(
    records: &Records,
    format: Format,
    args: &CheckArgs,
) -> Result<(String, u8)> {
    let mut facts = look(records, args).await?;
    let mut findings = compare::compare(&facts);
    if findings.iter().any(|finding| finding.sort != Sort::Unseen) {
        tokio::time::sleep(BETWEEN).await;
        facts = look(records, args).await?;
        findings = compare::lasting(&findings, compare::compare(&facts));
    }
    let shown = Shown {
        facts: &facts,
        findings: &findings,
        reach: &args.reach,
    };
    let text = match format {
        Format::Table => shown.text(),
        Format::Json => output::json(&shown.json()),
    };
    Ok((text, u8::from(!findings.is_empty())))
}

async fn look(records: &Records, args: &CheckArgs) -> Result<Facts> {
    let snapshot = Snapshot::read(records).await?;
    let mut names = compare::node_names(&snapshot);
    if !args.nodes.is_empty() {
        names = args.nodes.iter().map(ToString::to_string).collect();
    }
    let nodes = gather::gather(&names, &args.reach).await;
    let pods = records.store().pods().await?;
    Ok(Facts {
        snapshot,
        nodes,
        pods,
    })
}

struct Shown<'a> {
    facts: &'a Facts,
    findings: &'a [Finding],
    reach: &'a ReachArgs,
}

impl Shown<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        for finding in self.findings {
            text.push_str(&format!("{}: {}\n", word(finding.sort), finding.text));
            for repair in &finding.repair {
                text.push_str(&format!("  repair: {}\n", self.repair(repair)));
            }
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let count = |sort| self.findings.iter().filter(|f| f.sort == sort).count();
        let (seen, attachments) = self.seen();
        let compared = format!(
            "{} pools, {} blocks, {seen} of {} nodes, {attachments} attachments{} compared",
            self.facts.snapshot.pools.len(),
            self.facts.snapshot.blocks.len(),
            self.facts.nodes.len(),
            match &self.facts.pods {
                Some(pods) => format!(", {} pods", pods.len()),
                None => String::new(),
            }
        );
        if self.findings.is_empty() {
            return format!("clean: {compared}\n");
        }
        format!(
            "{} duplicates, {} leaks, {} orphans, {} strangers, {} nodes not looked at; {compared}\n",
            count(Sort::Duplicate),
            count(Sort::Leak),
            count(Sort::Orphan),
            count(Sort::Stranger),
            count(Sort::Unseen),
        )
    }

    fn seen(&self) -> (usize, usize) {
        let seen = self.facts.nodes.values().filter_map(|i| i.as_ref().ok());
        (
            seen.clone().count(),
            seen.map(|inventory| inventory.attachments.len()).sum(),
        )
    }

    fn repair(&self, repair: &Repair) -> String {
        match repair {
            Repair::Here(command) => command.clone(),
            Repair::On(node, command) => match self.reach.on(node, command) {
                Some(line) => line,
                None if self.reach.own_name().as_deref() == Some(node) => command.clone(),
                None => format!("on node {node}: {command}"),
            },
            Repair::Record(kind, name) => {
                format!(
                    "viaductctl ipam forget {kind} {} --yes",
                    compare::quoted(name)
                )
            }
        }
    }

    fn json(&self) -> Value {
        let (seen, attachments) = self.seen();
        json!({
            "clean": self.findings.is_empty(),
            "findings": self.findings.iter().map(|finding| json!({
                "kind": word(finding.sort),
                "subject": finding.subject,
                "text": finding.text,
                "repair": finding.repair.iter().map(|r| self.repair(r)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "compared": {
                "pools": self.facts.snapshot.pools.len(),
                "blocks": self.facts.snapshot.blocks.len(),
                "nodes": self.facts.nodes.len(),
                "nodesLookedAt": seen,
                "attachments": attachments,
                "pods": self.facts.pods.as_ref().map(Vec::len),
            },
        })
    }
}

fn word(sort: Sort) -> &'static str {
    match sort {
        Sort::Duplicate => "duplicate",
        Sort::Leak => "leak",
        Sort::Orphan => "orphan",
        Sort::Stranger => "stranger",
        Sort::Unseen => "unseen",
    }
}
