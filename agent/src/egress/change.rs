//! From what is to what should be, in one transaction: a pure comparison and the text
//! that `nft -j -f -` is given.
//!
//! Pools and nodes come and go: that changes elements of sets. Anything else that
//! differs replaces the table as a whole, which the kernel does at one moment too: no
//! packet ever meets half a table, and connections keep what they were given, because
//! that is remembered by connection tracking.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ruleset::{Chain, Element, NamedSet, Ruleset, SetKind, TABLE, TableFamily};
use viaduct_model::Family;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Elements of these sets come and go.
    Elements(Vec<SetChange>),
    /// The table is made anew; says why.
    Rewrite(String),
    /// The table goes.
    Remove,
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
        let sets = match self {
            Change::Rewrite(why) => return f.write_str(why),
            Change::Remove => return f.write_str("there should be no such table"),
            Change::Elements(sets) => sets.iter(),
        };
        let sets = sets.map(|change| {
            let (lacks, over) = (change.new.len(), change.gone.len());
            format!("set {} lacks {lacks} and has {over} too many", change.set)
        });
        f.write_str(&sets.collect::<Vec<_>>().join(", "))
    }
}

impl Change {
    /// Whether this does what `other` does not.
    pub fn exceeds(&self, other: Option<&Change>) -> bool {
        let (Change::Elements(sets), Some(Change::Elements(others))) = (self, other) else {
            return Some(self) != other;
        };
        sets.iter().any(|set| !others.contains(set))
    }
}

/// What makes `actual` into `desired`; `None` when nothing does. Either is `None`
/// where there is, or should be, no table.
pub fn change(desired: Option<&Ruleset>, actual: Option<&Ruleset>) -> Option<Change> {
    let (desired, actual) = match (desired, actual) {
        (None, None) => return None,
        (None, Some(_)) => return Some(Change::Remove),
        (Some(_), None) => return Some(Change::Rewrite("there is no such table".to_owned())),
        (Some(desired), Some(actual)) => (desired, actual),
    };
    if let Some(why) = structure(desired, actual) {
        return Some(Change::Rewrite(why));
    }
    let sets: Vec<SetChange> = desired
        .sets
        .iter()
        .filter_map(|(name, wanted)| set_change(name, wanted, actual.sets.get(name)?))
        .collect();
    (!sets.is_empty()).then_some(Change::Elements(sets))
}

/// What differs beside the elements of sets.
fn structure(desired: &Ruleset, actual: &Ruleset) -> Option<String> {
    if let Some(unknown) = actual.unknown.first() {
        return Some(format!("it has {unknown}, which does not belong there"));
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
    let chains = &mut desired.chains.iter();
    if let Some((name, _)) = chains.find(|(name, chain)| actual.chains.get(*name) != Some(chain)) {
        return Some(format!("chain {name} differs"));
    }
    let mut extra = actual.chains.keys();
    extra
        .find(|name| !desired.chains.contains_key(*name))
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
    let flush = !wanted.kind.is_incremental();
    let (new, gone) = if flush {
        (wanted.elements.clone(), BTreeSet::new())
    } else {
        (new, gone)
    };
    let set = name.to_owned();
    Some(SetChange {
        set,
        flush,
        gone,
        new,
    })
}

/// The transaction that makes the change, as `nft -j -f -` reads it.
pub fn transaction(family: TableFamily, desired: Option<&Ruleset>, change: &Change) -> String {
    let writer = Writer(family.name());
    let commands = match (change, desired) {
        (Change::Elements(sets), _) => sets.iter().flat_map(|set| writer.elements(set)).collect(),
        (Change::Rewrite(_), Some(desired)) => writer.rewrite(desired),
        (Change::Rewrite(_) | Change::Remove, _) => writer.remove(),
    };
    json!({"nftables": commands}).to_string()
}

/// Writes commands about the table of one family.
struct Writer(&'static str);

impl Writer {
    fn remove(&self) -> Vec<Value> {
        let table = json!({"table": {"family": self.0, "name": TABLE}});
        // To be deleted it has to be there.
        vec![json!({"add": table}), json!({"delete": table})]
    }

    fn rewrite(&self, desired: &Ruleset) -> Vec<Value> {
        let mut commands = self.remove();
        commands.push(json!({"add": {"table": {"family": self.0, "name": TABLE}}}));
        for (name, set) in &desired.sets {
            commands.push(json!({"add": {"set": self.declaration(name, set)}}));
        }
        for (name, chain) in &desired.chains {
            commands.extend(self.chain(name, chain));
        }
        commands
    }

    fn named(&self, name: &str) -> Value {
        json!({"family": self.0, "table": TABLE, "name": name})
    }

    fn chain(&self, name: &str, chain: &Chain) -> Vec<Value> {
        let mut body = self.named(name);
        if let Some(base) = &chain.base {
            body["type"] = json!(base.r#type);
            body["hook"] = json!(base.hook);
            body["prio"] = json!(base.priority);
            body["policy"] = json!(base.policy);
        }
        let mut commands = vec![json!({"add": {"chain": body}})];
        for rule in &chain.rules {
            let mut body = json!({
                "family": self.0, "table": TABLE, "chain": name, "expr": rule.statements,
            });
            if let Some(comment) = &rule.comment {
                body["comment"] = json!(comment);
            }
            commands.push(json!({"add": {"rule": body}}));
        }
        commands
    }

    fn declaration(&self, name: &str, set: &NamedSet) -> Value {
        let (SetKind::Prefixes(family) | SetKind::Addresses(family)) = set.kind;
        let mut body = self.named(name);
        body["type"] = json!(match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        });
        if !set.kind.is_incremental() {
            body["flags"] = json!(["interval"]);
        }
        if !set.elements.is_empty() {
            body["elem"] = set.elements.iter().map(element).collect();
        }
        body
    }

    fn elements(&self, change: &SetChange) -> Vec<Value> {
        let set = self.named(&change.set);
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
}

fn element(element: &Element) -> Value {
    match element {
        Element::Prefix(prefix) if prefix.prefix_len() == prefix.family().bits() => {
            json!(prefix.first().to_string())
        }
        Element::Prefix(prefix) => {
            json!({"prefix": {"addr": prefix.first().to_string(), "len": prefix.prefix_len()}})
        }
        // Never wanted, and what was found is never deleted one by one.
        Element::Other(text) => json!(text),
    }
}
