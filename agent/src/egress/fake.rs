//! A firewall for tests: carries out the transactions that it is given, on a table in
//! memory, and says what it was asked.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::listing;
use super::ruleset::{Element, Ruleset};
use super::tool::{Firewall, ToolError};

#[derive(Debug, Default)]
pub(crate) struct FakeFirewall {
    pub(crate) table: Option<Ruleset>,
    pub(crate) lists: usize,
    pub(crate) transactions: Vec<String>,
    /// Fails everything with this.
    pub(crate) broken: Option<ToolError>,
    /// Spells the comments of rules in its own way when it lists them.
    pub(crate) accent: bool,
}

impl Firewall for &'static std::sync::Mutex<FakeFirewall> {
    async fn list(&mut self) -> Result<Option<Ruleset>, ToolError> {
        let mut fake = self.lock().unwrap();
        fake.lists += 1;
        let mut table = fake.table.clone();
        if fake.accent {
            let chains = table.iter_mut().flat_map(|table| table.chains.values_mut());
            for rule in chains.flat_map(|chain| &mut chain.rules) {
                rule.statements.push(json!({"spelling": "other"}));
            }
        }
        fake.broken.clone().map_or(Ok(table), Err)
    }

    async fn apply(&mut self, transaction: String) -> Result<(), ToolError> {
        let mut fake = self.lock().unwrap();
        if let Some(error) = &fake.broken {
            return Err(error.clone());
        }
        if fake.table.is_none() && !transaction.contains("\"chain\"") {
            return Err(ToolError::Refused("No such file or directory".into()));
        }
        fake.table = Some(applied(fake.table.take(), &transaction));
        fake.transactions.push(transaction);
        Ok(())
    }
}

/// The table after a transaction.
pub(crate) fn applied(mut table: Option<Ruleset>, transaction: &str) -> Ruleset {
    let transaction: Value = serde_json::from_str(transaction).unwrap();
    // What is added reads as what is listed.
    let mut listed = Vec::new();
    for command in transaction["nftables"].as_array().unwrap() {
        let (verb, object) = command.as_object().unwrap().iter().next().unwrap();
        let (kind, body) = object.as_object().unwrap().iter().next().unwrap();
        match (verb.as_str(), kind.as_str()) {
            ("delete", "table") => listed.clear(),
            ("add", "element") => {
                *elements(&mut table, body) = {
                    let mut all = elements(&mut table, body).clone();
                    all.extend(read(&table, body));
                    all
                }
            }
            ("delete", "element") => {
                for element in read(&table, body) {
                    assert!(elements(&mut table, body).remove(&element), "{element:?}");
                }
            }
            ("flush", "set") => elements(&mut table, body).clear(),
            ("add", _) => listed.push(object.clone()),
            other => panic!("{other:?}"),
        }
    }
    if listed.is_empty() {
        return table.expect("a table whose elements change");
    }
    listing::parse(&json!({"nftables": listed}).to_string()).unwrap()
}

fn elements<'a>(table: &'a mut Option<Ruleset>, body: &Value) -> &'a mut BTreeSet<Element> {
    let name = body["name"].as_str().unwrap();
    &mut table.as_mut().unwrap().sets.get_mut(name).unwrap().elements
}

/// Elements as text, read as elements of the set that they are for.
fn read(table: &Option<Ruleset>, body: &Value) -> BTreeSet<Element> {
    let name = body["name"].as_str().unwrap();
    let kind = table.as_ref().unwrap().sets[name].kind;
    body["elem"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|element| listing::read_element(kind, element))
        .collect()
}
