//! Records as bytes, behind the programs' backs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use viaduct_datastore::store::SharedStore;
use viaduct_lab::Lab;
use viaduct_model::Kind;

/// The datastore of a lab, by bytes.
pub struct Raw {
    runtime: tokio::runtime::Runtime,
    store: SharedStore,
}

impl Raw {
    /// Opens the lab's datastore.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(lab: &Lab) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let store = runtime.block_on(viaduct_datastore::open(&lab.store_options()))?;
        Ok(Self { runtime, store })
    }

    /// A record as it stands.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, kind: Kind, name: &str) -> Result<String> {
        let entry = self.runtime.block_on(self.store.get(kind, name))?;
        let entry = entry.with_context(|| format!("there is no {kind} {name}"))?;
        Ok(String::from_utf8_lossy(&entry.value).into_owned())
    }

    /// A record as JSON.
    ///
    /// # Errors
    /// When there is none, or it is no JSON.
    pub fn json(&self, kind: Kind, name: &str) -> Result<Value> {
        let text = self.get(kind, name)?;
        serde_json::from_str(&text).with_context(|| format!("{kind} {name}: {text}"))
    }

    /// All records of a kind.
    ///
    /// # Errors
    /// When the store does not answer, or one is no JSON.
    pub fn all(&self, kind: Kind) -> Result<BTreeMap<String, Value>> {
        let list = self.runtime.block_on(self.store.list(kind))?;
        list.entries
            .into_iter()
            .map(|entry| Ok((entry.name, serde_json::from_slice(&entry.value)?)))
            .collect()
    }

    /// Puts bytes there, whatever was there before.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn put(&self, kind: Kind, name: &str, bytes: &str) -> Result<()> {
        crate::eventually(|| {
            self.runtime.block_on(async {
                let bytes = bytes.as_bytes();
                match self.store.get(kind, name).await? {
                    None => self.store.create(kind, name, bytes, None).await?,
                    Some(entry) => {
                        let version = &entry.version;
                        self.store.update(kind, name, bytes, version, None).await?
                    }
                };
                Ok(())
            })
        })
    }

    /// Deletes a record, whoever changes it meanwhile.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&self, kind: Kind, name: &str) -> Result<()> {
        crate::eventually(|| {
            self.runtime.block_on(async {
                let entry = self.store.get(kind, name).await?;
                let entry = entry.with_context(|| format!("there is no {kind} {name}"))?;
                Ok(self.store.delete(kind, name, &entry.version).await?)
            })
        })
    }

    /// Which node owns which blocks: CIDRs by node.
    ///
    /// # Errors
    /// As [`Raw::all`].
    pub fn blocks_by_node(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for block in self.all(Kind::Block)?.into_values() {
            let text = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
            blocks.entry(text("node")).or_default().push(text("cidr"));
        }
        Ok(blocks)
    }
}
