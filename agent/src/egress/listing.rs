//! Reads what `nft -j list table` prints of our table. Pure.
//!
//! What this release never makes is kept as unknown, so that it differs from what is
//! wanted instead of being overlooked. What only numbers (handles) is left out, for it
//! is no part of what was wanted.

use std::net::IpAddr;

use serde_json::{Map, Value};
use viaduct_model::{Cidr, Family};

use super::prefixes::{fewest, of_range};
use super::ruleset::{Base, Chain, Element, NamedSet, Rule, Ruleset, SetKind};

/// The table as listed.
///
/// # Errors
/// One sentence when it is not what `nft` prints.
pub fn parse(text: &str) -> Result<Ruleset, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("no JSON: {e}"))?;
    let objects = value
        .get("nftables")
        .and_then(Value::as_array)
        .ok_or("no list under \"nftables\"")?;
    let mut ruleset = Ruleset::default();
    for object in objects.iter().filter_map(Value::as_object) {
        for (kind, body) in object {
            if let Some(unknown) = add(&mut ruleset, kind, body) {
                ruleset.unknown.push(unknown);
            }
        }
    }
    Ok(ruleset)
}

/// Adds one listed object; what cannot be added is returned as text.
pub(super) fn add(ruleset: &mut Ruleset, kind: &str, body: &Value) -> Option<String> {
    let name = || body.get("name").and_then(Value::as_str).map(str::to_owned);
    let known = match kind {
        "metainfo" => Some(()),
        // A dormant table has all its rules and obeys none.
        "table" => body.get("flags").is_none().then_some(()),
        "set" => name().zip(set(body)).map(|(name, set)| {
            ruleset.sets.insert(name, set);
        }),
        "chain" => name().map(|name| {
            let base = base(body);
            ruleset
                .chains
                .entry(name)
                .or_insert_with(|| Chain {
                    base: None,
                    rules: Vec::new(),
                })
                .base = base;
        }),
        "rule" => rule(ruleset, body),
        _ => None,
    };
    match known {
        Some(()) => None,
        None => Some(format!("{kind} {}", name().unwrap_or_default())),
    }
}

fn rule(ruleset: &mut Ruleset, body: &Value) -> Option<()> {
    let chain = body.get("chain")?.as_str()?;
    let rule = Rule {
        statements: body.get("expr")?.as_array()?.clone(),
        comment: body
            .get("comment")
            .and_then(Value::as_str)
            .map(str::to_owned),
    };
    // Chains are listed before their rules.
    ruleset.chains.get_mut(chain)?.rules.push(rule);
    Some(())
}

fn base(body: &Value) -> Option<Base> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Base {
        r#type: text("type")?,
        hook: text("hook")?,
        priority: body.get("prio")?.as_i64()?,
        policy: text("policy").unwrap_or_default(),
    })
}

/// The properties of a set that make it one of ours; any other (a timeout, a size)
/// makes it unknown.
const SET_KEYS: [&str; 7] = ["family", "name", "table", "type", "handle", "flags", "elem"];

fn set(body: &Value) -> Option<NamedSet> {
    let body = body.as_object()?;
    if body.keys().any(|key| !SET_KEYS.contains(&key.as_str())) {
        return None;
    }
    let kind = kind(body)?;
    let listed = body.get("elem").and_then(Value::as_array);
    let mut elements: Vec<Element> = Vec::new();
    for element in listed.into_iter().flatten() {
        elements.extend(read_element(element));
    }
    Some(NamedSet {
        kind,
        elements: normal(kind, elements),
    })
}

fn normal(kind: SetKind, elements: Vec<Element>) -> std::collections::BTreeSet<Element> {
    if kind.is_incremental() {
        return elements.into_iter().collect();
    }
    let (mut prefixes, mut others) = (Vec::new(), Vec::new());
    for element in elements {
        match element {
            Element::Prefix(prefix) => prefixes.push(prefix),
            other => others.push(other),
        }
    }
    let prefixes = fewest(prefixes).into_iter().map(Element::Prefix);
    prefixes.chain(others).collect()
}

fn kind(body: &Map<String, Value>) -> Option<SetKind> {
    // One of several is printed as a list by some releases and bare by others.
    let list = |key: &str| -> Vec<&str> {
        match body.get(key) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    };
    let flags = list("flags");
    let of = |name: &str| match name {
        "ipv4_addr" => Some(Family::V4),
        "ipv6_addr" => Some(Family::V6),
        _ => None,
    };
    match (list("type").as_slice(), flags.as_slice()) {
        ([address], []) => of(address).map(SetKind::Addresses),
        ([address], ["interval"]) => of(address).map(SetKind::Prefixes),
        _ => None,
    }
}

pub(super) fn read_element(element: &Value) -> Vec<Element> {
    if let Some(prefixes) = range(element) {
        return prefixes.into_iter().map(Element::Prefix).collect();
    }
    let read = prefix(element).map(Element::Prefix);
    vec![read.unwrap_or_else(|| Element::Other(element.to_string()))]
}

fn prefix(element: &Value) -> Option<Cidr> {
    if let Some(address) = element.as_str() {
        return Some(Cidr::host(address.parse().ok()?));
    }
    let prefix = element.get("prefix")?;
    let address: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    let len = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
    Cidr::new(address, len).ok()
}

fn range(element: &Value) -> Option<std::collections::BTreeSet<Cidr>> {
    let ends = element.get("range")?.as_array()?;
    let [first, last] = ends.as_slice() else {
        return None;
    };
    of_range(first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?)
}
