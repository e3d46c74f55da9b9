//! The suite on etcd: every generic case on a prefix of its own in one etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use viaduct_datastore::{Store, StoreOptions, open};

use crate::Lab;
use crate::etcd_process::Etcd;

/// A prefix of its own in an etcd that others may share.
pub struct EtcdLab {
    etcd: Arc<Etcd>,
    options: StoreOptions,
}

impl EtcdLab {
    /// In the etcd that all harmless tests share.
    pub async fn shared() -> Self {
        Self::on(Etcd::shared())
    }

    /// In this etcd.
    pub fn on(etcd: Arc<Etcd>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let options = StoreOptions {
            url: etcd.url(),
            etcd_prefix: Some(format!("/test-{n}")),
            ..StoreOptions::default()
        };
        Self { etcd, options }
    }

    /// The etcd underneath.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// How its clients are opened.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }
}

impl Lab for EtcdLab {
    async fn open(&self) -> Arc<dyn Store> {
        open(&self.options).await.unwrap()
    }
}

crate::all_cases!(EtcdLab::shared());
