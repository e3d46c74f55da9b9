//! The common cases, each on names of its own in one cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use viaduct_datastore::{Store, open};

use crate::Lab;
use crate::api_server::ApiServer;
use crate::costume::{Costume, Dressmaker};

/// Names of its own in a cluster that others may share.
pub struct KubeLab {
    server: Arc<ApiServer>,
    prefix: String,
}

impl KubeLab {
    /// In the cluster that all harmless tests share.
    pub async fn shared() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(10);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            server: ApiServer::shared().await,
            prefix: format!("t{n}-"),
        }
    }
}

impl Lab for KubeLab {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(Costume {
            inner: open(&self.server.options()).await.unwrap(),
            prefix: self.prefix.clone(),
            server: Dressmaker(self.server.clone()),
        })
    }
}

crate::common_cases!(KubeLab::shared());
