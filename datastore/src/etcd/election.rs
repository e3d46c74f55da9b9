//! Elections on etcd: a key on a lease, created by whoever comes first.
//!
//! One readable key, `<prefix>/v1/election/<name>`. The leader stops believing
//! before etcd may give the key to another, by its own monotonic clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::Etcd;
use super::watch::Watch;
use crate::store::{Change, Leadership, LeaseId, StoreError};

const TTL: Duration = Duration::from_secs(10);
/// The leader is done this much before the lease can have run out.
const MARGIN: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(500);

/// Resigns when dropped: the holder's task hears that the other end is gone.
struct Guard {
    _held: oneshot::Sender<()>,
}

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
                let (tell, lost) = watch::channel(false);
                let (held, dropped) = oneshot::channel();
                let leader = Leader {
                    etcd: etcd.clone(),
                    key,
                    lease,
                    revision,
                    proved,
                };
                tokio::spawn(leader.hold(tell, dropped));
                return Ok(Leadership {
                    lost,
                    guard: Box::new(Guard { _held: held }),
                });
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

struct Leader {
    etcd: Arc<Etcd>,
    key: String,
    lease: LeaseId,
    revision: i64,
    /// When the lease was last proved alive: before the request was sent.
    proved: Instant,
}

impl Leader {
    async fn hold(mut self, tell: watch::Sender<bool>, mut dropped: oneshot::Receiver<()>) {
        let mut pause = TTL / 3;
        let why = loop {
            let left = (TTL - MARGIN).saturating_sub(self.proved.elapsed());
            if left.is_zero() {
                break "its lease could not be kept alive in time";
            }
            tokio::select! {
                _ = &mut dropped => break "resigned",
                () = tokio::time::sleep(pause.min(left)) => {}
            }
            let left = (TTL - MARGIN).saturating_sub(self.proved.elapsed());
            let asked = Instant::now();
            let proved = tokio::select! {
                _ = &mut dropped => break "resigned",
                proved = tokio::time::timeout(left, self.prove()) => proved,
            };
            match proved {
                Ok(Ok(true)) => {
                    self.proved = asked;
                    pause = TTL / 3;
                }
                Ok(Ok(false) | Err(StoreError::LeaseExpired { .. })) => {
                    break "its key or its lease is gone";
                }
                Ok(Err(_)) | Err(_) => pause = RETRY,
            }
        };
        tracing::info!(key = %self.key, why, "leadership ended");
        let _ = tell.send(true);
        // So that the next one need not wait. If this fails it runs out.
        let _ = self.etcd.revoke(&self.lease).await;
    }

    /// Whether the lease lives and the key is the one that we created.
    async fn prove(&self) -> Result<bool, StoreError> {
        self.etcd.keep(&self.lease).await?;
        let (there, _) = self.etcd.read(&self.key).await?;
        Ok(there.is_some_and(|kv| kv.create_revision() == self.revision))
    }
}
