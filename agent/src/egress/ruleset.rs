//! Our table as plain data: what is wanted and what was listed are the same type, so
//! that comparing them is comparing values.
//!
//! A rule is the list of statements in libnftables' JSON (libnftables-json(5)), which
//! is what `nft` is given and what it lists: one spelling for both ways.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use viaduct_model::{Cidr, Family};

/// The table's name; whatever is in it is ours.
pub const TABLE: &str = "viaduct";

/// The family of a table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFamily {
    /// Rules for IPv4 and IPv6 stand side by side.
    Inet,
    /// Chains belong to devices. Only agents of before docs/adr/0052 was amended made such
    /// a table; it is removed.
    Netdev,
}

impl TableFamily {
    /// As `nft` calls it.
    pub fn name(self) -> &'static str {
        match self {
            TableFamily::Inet => "inet",
            TableFamily::Netdev => "netdev",
        }
    }
}

/// As people call the table.
impl std::fmt::Display for TableFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nft table {} {TABLE}", self.name())
    }
}

/// The table's content.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ruleset {
    /// Named sets.
    pub sets: BTreeMap<String, NamedSet>,
    /// Chains.
    pub chains: BTreeMap<String, Chain>,
    /// What we never make, as it was listed: never wanted, so it always differs.
    pub unknown: Vec<String>,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet {
    /// What it holds.
    pub kind: SetKind,
    /// What is in it.
    pub elements: BTreeSet<Element>,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// Prefixes, the fewest that hold the same addresses (flag `interval`).
    Prefixes(Family),
    /// Single addresses.
    Addresses(Family),
}

impl SetKind {
    /// Whether single elements can be added and taken out without looking at the
    /// others; intervals are replaced whole.
    pub fn is_incremental(self) -> bool {
        !matches!(self, SetKind::Prefixes(_))
    }
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A prefix or, with its full length, an address.
    Prefix(Cidr),
    /// What we never put there, as it was listed.
    Other(String),
}

/// A chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Type, hook, priority and policy; `None` for a chain that no packet enters
    /// by itself.
    pub base: Option<Base>,
    /// The rules in their order.
    pub rules: Vec<Rule>,
}

/// Where a base chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Such as `filter` or `nat`.
    pub r#type: String,
    /// Such as `prerouting`.
    pub hook: String,
    /// Lower is earlier.
    pub priority: i64,
    /// `accept` or `drop`.
    pub policy: String,
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its statements.
    pub statements: Vec<Value>,
    /// What it says to people who list it.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule with a comment.
    pub fn new(comment: &str, statements: Vec<Value>) -> Self {
        Self {
            statements,
            comment: Some(comment.to_owned()),
        }
    }
}

/// A match statement.
pub fn matches(op: &str, left: &Value, right: &Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

/// A property of the packet beside its headers, such as the device it came in by.
pub fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

/// The source or destination address field.
pub fn address_field(family: Family, field: &str) -> Value {
    let protocol = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// A verdict without arguments.
pub fn verdict(name: &str) -> Value {
    json!({name: null})
}
