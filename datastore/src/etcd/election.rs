//! Elections on etcd: a key on a lease, created by whoever comes first.
//!
//! One readable key, `<prefix>/v1/election/<name>`. The leader stops believing
//! before etcd may give the key to another, by its own monotonic clock.

use std::sync::Arc;

use tokio::time::Instant;

use super::Etcd;
use super::watch::Watch;
use crate::store::{Change, Leadership, LeaseId, StoreError};
use crate::tenure::{self, Proof, TTL, Term};

/// Waits until this process leads.
pub(super) async fn campaign(
    etcd: &Arc<Etcd>,
    election: &str,
    identity: &str,
) -> Result<Leadership, StoreError> {
    let key = format!("{}/v1/election/{election}", etcd.prefix);
    let value = serde_json::json!({ "identity": identity }).to_string();
    loop {
        let (there, at) = etcd.read(&key).await?;
        if there.is_some() {
            let mut changes = Watch::begin(etcd.cluster.clone(), key.clone(), at).await?;
            loop {
                match changes.next().await {
                    // The prefix is the whole key: the rest of the name is empty.
                    Some(Ok(Change::Delete { name })) if name.is_empty() => break,
                    Some(Ok(_)) => {}
                    Some(Err(StoreError::Compacted { .. })) | None => break,
                    Some(Err(e)) => return Err(e),
                }
            }
            continue;
        }
        let proved = Instant::now();
        let lease = etcd.grant(TTL).await?;
        match etcd.put_new(&key, value.as_bytes(), Some(&lease)).await {
            Ok(Some(revision)) => {
                let term = Office {
                    etcd: etcd.clone(),
                    key,
                    lease,
                    revision,
                };
                return Ok(tenure::lead(term, proved));
            }
            Ok(None) => {
                // Somebody was quicker; what fails here runs out by itself.
                let _ = etcd.revoke(&lease).await;
            }
            Err(e) => {
                let _ = etcd.revoke(&lease).await;
                return Err(e);
            }
        }
    }
}

/// The key that we created, on a lease of ours.
struct Office {
    etcd: Arc<Etcd>,
    key: String,
    lease: LeaseId,
    revision: i64,
}

impl Term for Office {
    fn name(&self) -> &str {
        &self.key
    }

    /// Whether the lease lives and the key is the one that we created.
    async fn prove(&mut self) -> Proof {
        match self.etcd.keep(&self.lease).await {
            Ok(()) => {}
            Err(StoreError::LeaseExpired { .. }) => return Proof::Over("its lease is gone"),
            Err(_) => return Proof::None,
        }
        match self.etcd.read(&self.key).await {
            Ok((Some(kv), _)) if kv.create_revision() == self.revision => Proof::Lasts,
            Ok(_) => Proof::Over("its key is gone"),
            Err(_) => Proof::None,
        }
    }

    async fn resign(self) {
        let _ = self.etcd.revoke(&self.lease).await;
    }
}
