//! From what is to what should be, in one transaction: a pure comparison and the text
//! that `nft -j -f -` is given.
//!
//! Pods come and go: that changes elements of sets, one by one, and nothing else.
//! Anything else that differs replaces the table as a whole, which the kernel does at
//! one moment too: no packet ever meets half a table, and connections keep what they
//! were given, because that is remembered by connection tracking.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ruleset::{Chain, Element, FAMILY, NamedSet, Ruleset, SetKind, TABLE};
use viaduct_model::Family;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Elements of sets come and go.
    Elements(Vec<SetChange>),
    /// The table is made anew; says why.
    Rewrite(String),
}

/// What changes in one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetChange {
    /// The set's name.
    pub set: String,
    /// Whether it is emptied first, as intervals are.
    pub flush: bool,
    /// What goes.
    pub gone: BTreeSet<Element>,
    /// What comes.
    pub new: BTreeSet<Element>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Rewrite(why) => f.write_str(why),
            Change::Elements(changes) => {
                for (i, change) in changes.iter().enumerate() {
                    let separator = if i == 0 { "" } else { ", " };
                    write!(
                        f,
                        "{separator}set {} lacks {} and has {} too many",
                        change.set,
                        change.new.len(),
                        change.gone.len()
                    )?;
                }
                Ok(())
            }
        }
    }
}

/// What makes `actual` into `desired`; `None` when nothing does. `actual` is `None`
/// when there is no table.
pub fn change(desired: &Ruleset, actual: Option<&Ruleset>) -> Option<Change> {
    let Some(actual) = actual else {
        return Some(Change::Rewrite("there is no such table".to_owned()));
    };
    if let Some(why) = structure(desired, actual) {
        return Some(Change::Rewrite(why));
    }
    let changes: Vec<SetChange> = desired
        .sets
        .iter()
        .filter_map(|(name, wanted)| set_change(name, wanted, actual.sets.get(name)?))
        .collect();
    (!changes.is_empty()).then_some(Change::Elements(changes))
}

/// What differs beside the elements of sets.
fn structure(desired: &Ruleset, actual: &Ruleset) -> Option<String> {
    if let Some(unknown) = actual.unknown.first() {
        return Some(format!("it has {unknown}, which does not belong there"));
    }
    if desired.counters != actual.counters {
        return Some("its counters differ".to_owned());
    }
    let kinds = |ruleset: &Ruleset| -> Vec<(String, SetKind)> {
        let sets = ruleset.sets.iter();
        sets.map(|(name, set)| (name.clone(), set.kind)).collect()
    };
    if kinds(desired) != kinds(actual) {
        return Some("its sets differ".to_owned());
    }
    let stray = actual.sets.iter().find(|(_, set)| {
        let elements = &mut set.elements.iter();
        elements.any(|element| matches!(element, Element::Other(_)))
    });
    if let Some((name, _)) = stray {
        return Some(format!("set {name} has an element of another kind"));
    }
    if let Some((name, _)) = desired
        .chains
        .iter()
        .find(|(name, chain)| actual.chains.get(*name) != Some(chain))
    {
        return Some(format!("chain {name} differs"));
    }
    let extra = actual.chains.keys();
    let mut extra = extra.filter(|name| !desired.chains.contains_key(*name));
    extra
        .next()
        .map(|name| format!("it has a chain {name}, which does not belong there"))
}

fn set_change(name: &str, wanted: &NamedSet, is: &NamedSet) -> Option<SetChange> {
    let less = |a: &NamedSet, b: &NamedSet| -> BTreeSet<Element> {
        a.elements.difference(&b.elements).cloned().collect()
    };
    let (new, gone) = (less(wanted, is), less(is, wanted));
    if new.is_empty() && gone.is_empty() {
        return None;
    }
    Some(if wanted.kind.is_incremental() {
        SetChange {
            set: name.to_owned(),
            flush: false,
            gone,
            new,
        }
    } else {
        SetChange {
            set: name.to_owned(),
            flush: true,
            gone: BTreeSet::new(),
            new: wanted.elements.clone(),
        }
    })
}

/// The transaction that makes the change, as `nft -j -f -` reads it.
pub fn transaction(desired: &Ruleset, change: &Change) -> String {
    let commands = match change {
        Change::Rewrite(_) => rewrite(desired),
        Change::Elements(changes) => changes.iter().flat_map(elements).collect(),
    };
    json!({"nftables": commands}).to_string()
}

fn rewrite(desired: &Ruleset) -> Vec<Value> {
    let table = json!({"table": {"family": FAMILY, "name": TABLE}});
    let mut commands = vec![
        // To be deleted it has to be there.
        json!({"add": table}),
        json!({"delete": table}),
        json!({"add": table}),
    ];
    for name in &desired.counters {
        commands
            .push(json!({"add": {"counter": {"family": FAMILY, "table": TABLE, "name": name}}}));
    }
    for (name, set) in &desired.sets {
        commands.push(json!({"add": {"set": declaration(name, set)}}));
    }
    for (name, chain) in &desired.chains {
        commands.push(json!({"add": {"chain": chain_body(name, chain)}}));
    }
    for (name, chain) in &desired.chains {
        for rule in &chain.rules {
            let mut body = json!({
                "family": FAMILY, "table": TABLE, "chain": name, "expr": rule.statements,
            });
            if let Some(comment) = &rule.comment {
                body["comment"] = json!(comment);
            }
            commands.push(json!({"add": {"rule": body}}));
        }
    }
    commands
}

fn chain_body(name: &str, chain: &Chain) -> Value {
    let mut body = json!({"family": FAMILY, "table": TABLE, "name": name});
    if let Some(base) = &chain.base {
        body["type"] = json!(base.r#type);
        body["hook"] = json!(base.hook);
        body["prio"] = json!(base.priority);
        body["policy"] = json!(base.policy);
    }
    body
}

fn declaration(name: &str, set: &NamedSet) -> Value {
    let address = |family| match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let r#type = match set.kind {
        SetKind::Prefixes(family) | SetKind::Addresses(family) => json!(address(family)),
        SetKind::Links => json!("ifname"),
        SetKind::LinkAddresses(family) => json!(["ifname", address(family)]),
    };
    let mut body = json!({"family": FAMILY, "table": TABLE, "name": name, "type": r#type});
    if !set.kind.is_incremental() {
        body["flags"] = json!(["interval"]);
    }
    if !set.elements.is_empty() {
        body["elem"] = set.elements.iter().map(element).collect();
    }
    body
}

fn elements(change: &SetChange) -> Vec<Value> {
    let set = json!({"family": FAMILY, "table": TABLE, "name": change.set});
    let with = |of: &BTreeSet<Element>| {
        let mut body = set.clone();
        body["elem"] = of.iter().map(element).collect();
        body
    };
    let mut commands = Vec::new();
    if change.flush {
        commands.push(json!({"flush": {"set": set}}));
    }
    if !change.gone.is_empty() {
        commands.push(json!({"delete": {"element": with(&change.gone)}}));
    }
    if !change.new.is_empty() {
        commands.push(json!({"add": {"element": with(&change.new)}}));
    }
    commands
}

fn element(element: &Element) -> Value {
    match element {
        Element::Prefix(prefix) if prefix.prefix_len() == prefix.family().bits() => {
            json!(prefix.first().to_string())
        }
        Element::Prefix(prefix) => {
            json!({"prefix": {"addr": prefix.first().to_string(), "len": prefix.prefix_len()}})
        }
        Element::Link(link) => json!(link),
        Element::LinkAddress(link, address) => json!({"concat": [link, address.to_string()]}),
        // Never wanted, and what was found is never deleted one by one.
        Element::Other(text) => json!(text),
    }
}
