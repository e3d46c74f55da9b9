//! A firewall for tests: carries out the transactions that it is given, on a table in
//! memory, and says what it was asked.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::listing;
use super::ruleset::{Element, Ruleset, TableFamily};
use super::tool::{Firewall, ToolError};

#[derive(Debug, Default)]
pub(crate) struct FakeFirewall {
    pub(crate) table: Option<Ruleset>,
    pub(crate) lists: usize,
    /// Raised by transactions, and by whoever tampers with the table if the test says so.
    pub(crate) generation: u32,
    pub(crate) transactions: Vec<String>,
    /// Fails everything with this.
    pub(crate) broken: Option<ToolError>,
    /// Refuses whatever has this in it, as a kernel without it does.
    pub(crate) lacks: Option<&'static str>,
    /// Lists rubbish where there is something unknown.
    pub(crate) rubbish: bool,
    /// Spells rules in its own way when it lists them.
    pub(crate) accent: bool,
}

impl FakeFirewall {
    fn judge(&self, transaction: &str) -> Result<(), ToolError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        match self.lacks {
            Some(what) if transaction.contains(what) => {
                Err(ToolError::Refused("No such file or directory".into()))
            }
            _ => Ok(()),
        }
    }
}

impl Firewall for &'static std::sync::Mutex<FakeFirewall> {
    async fn list(&mut self, _: TableFamily) -> Result<Option<Ruleset>, ToolError> {
        let mut fake = self.lock().unwrap();
        fake.lists += 1;
        let mut table = fake.table.clone();
        if fake.rubbish && table.as_ref().is_some_and(|t| !t.unknown.is_empty()) {
            return Err(ToolError::Unreadable("no JSON".into()));
        }
        if fake.accent {
            let chains = table.iter_mut().flat_map(|table| table.chains.values_mut());
            for rule in chains.flat_map(|chain| &mut chain.rules) {
                rule.statements.push(json!({"spelling": "other"}));
            }
        }
        fake.broken.clone().map_or(Ok(table), Err)
    }

    fn generation(&mut self) -> Option<u32> {
        Some(self.lock().unwrap().generation)
    }

    async fn apply(&mut self, transaction: String) -> Result<(), ToolError> {
        let mut fake = self.lock().unwrap();
        fake.judge(&transaction)?;
        if fake.table.is_none() && !transaction.contains("\"table\":{") {
            return Err(ToolError::Refused("No such file or directory".into()));
        }
        fake.table = applied(fake.table.take(), &transaction);
        fake.generation += 1;
        fake.transactions.push(transaction);
        Ok(())
    }

    async fn check(&mut self, transaction: String) -> Result<(), ToolError> {
        self.lock().unwrap().judge(&transaction)
    }
}

/// The table after a transaction.
pub(crate) fn applied(mut table: Option<Ruleset>, transaction: &str) -> Option<Ruleset> {
    let transaction: Value = serde_json::from_str(transaction).unwrap();
    for command in transaction["nftables"].as_array().unwrap() {
        let (verb, object) = command.as_object().unwrap().iter().next().unwrap();
        let (kind, body) = object.as_object().unwrap().iter().next().unwrap();
        match (verb.as_str(), kind.as_str()) {
            ("delete", "table") => {
                assert!(table.take().is_some(), "to be deleted it has to be there");
            }
            ("add", "element") => {
                let new = read(body);
                elements(&mut table, body).extend(new);
            }
            ("delete", "element") => {
                for element in read(body) {
                    assert!(elements(&mut table, body).remove(&element), "{element:?}");
                }
            }
            ("flush", "set") => elements(&mut table, body).clear(),
            // What is added reads as what is listed.
            ("add", _) => {
                let table = table.get_or_insert_default();
                if let Some(unknown) = listing::add(table, kind, body) {
                    table.unknown.push(unknown);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    table
}

fn elements<'a>(table: &'a mut Option<Ruleset>, body: &Value) -> &'a mut BTreeSet<Element> {
    let name = body["name"].as_str().unwrap();
    &mut table.as_mut().unwrap().sets.get_mut(name).unwrap().elements
}

fn read(body: &Value) -> BTreeSet<Element> {
    let elements = body["elem"].as_array().unwrap().iter();
    elements.flat_map(listing::read_element).collect()
}
