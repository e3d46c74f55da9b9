//! The suite on sqlite, and what only sqlite can suffer.

use std::sync::Arc;

use tempfile::TempDir;
use viaduct_datastore::{Store, StoreOptions, open};

use crate::Lab;

/// A store file in a directory of its own.
pub struct SqliteLab {
    dir: TempDir,
}

impl SqliteLab {
    pub async fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("store.db")
    }
}

impl Lab for SqliteLab {
    async fn open(&self) -> Arc<dyn Store> {
        open(&StoreOptions {
            url: format!("sqlite:{}", self.path().display()),
            ..StoreOptions::default()
        })
        .await
        .unwrap()
    }
}

crate::all_cases!(SqliteLab::new());
