//! Watching a range of keys from a revision on.

use std::collections::VecDeque;
use std::sync::Arc;

use etcd_client::{Error, EventType, WatchOptions, WatchStream};

use super::endpoint::{Cluster, Used};
use super::fault::{Fault, fault_of};
use crate::store::{Change, Cursor, Entry, StoreError, Version};

/// A cursor: which cluster, and its revision. A cluster that was rebuilt counts
/// revisions anew, so a revision alone says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) cluster: u64,
    pub(super) revision: i64,
}

impl Point {
    pub(super) fn cursor(self) -> Cursor {
        Cursor(format!("{:x}.{}", self.cluster, self.revision))
    }

    pub(super) fn parse(cursor: &Cursor) -> Option<Self> {
        let (cluster, revision) = cursor.0.split_once('.')?;
        Some(Self {
            cluster: u64::from_str_radix(cluster, 16).ok()?,
            revision: revision.parse().ok()?,
        })
    }
}

/// One watch.
pub(super) struct Watch {
    cluster: Arc<Cluster>,
    from: Point,
    prefix: String,
    stream: WatchStream,
    used: Used,
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watch {
    /// Watches all keys that begin with `prefix` for what comes after `from`.
    pub(super) async fn begin(
        cluster: Arc<Cluster>,
        prefix: String,
        from: Point,
    ) -> Result<Self, StoreError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(from.revision.saturating_add(1))
            .with_progress_notify()
            .with_fragment();
        let opened = cluster
            .call(true, |mut client| {
                let (prefix, options) = (prefix.clone(), options.clone());
                async move {
                    let mut stream = client.watch(prefix, Some(options)).await?;
                    let first = stream.message().await?;
                    let first =
                        first.ok_or_else(|| Error::WatchError("it ended at once".into()))?;
                    Ok((stream, first))
                }
            })
            .await;
        let ((stream, first), used) = match opened {
            Ok(opened) => opened,
            Err(fault) => return Err(meaning(&cluster, from, fault)),
        };
        let watch = Self {
            cluster,
            from,
            prefix,
            stream,
            used,
            ready: VecDeque::new(),
            ended: false,
        };
        watch.check(&first).map_err(|fault| watch.failed(fault))?;
        // Restored from a backup, or rebuilt: etcd would wait in silence until
        // it gets to our revision once more.
        if let Some(header) = first.header()
            && (header.cluster_id() != from.cluster || header.revision() < from.revision)
        {
            return Err(watch.failed(Fault::Compacted));
        }
        Ok(watch)
    }

    /// The next change; `None` after an error was told.
    pub(super) async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            if self.ended {
                return None;
            }
            let fault = match self.stream.message().await {
                Ok(Some(response)) => match self.check(&response) {
                    Ok(()) => {
                        self.take(&response);
                        continue;
                    }
                    Err(fault) => fault,
                },
                Ok(None) => Fault::Unavailable {
                    reason: "the watch was closed".into(),
                    sent: true,
                },
                Err(e) => fault_of(&e),
            };
            self.ended = true;
            let error = self.failed(fault);
            return Some(self.cluster.monitor.saw(Err(error)));
        }
    }

    fn check(&self, response: &etcd_client::WatchResponse) -> Result<(), Fault> {
        if !response.canceled() {
            return Ok(());
        }
        if response.compact_revision() > 0 {
            return Err(Fault::Compacted);
        }
        let reason = format!("the watch was cancelled: {}", response.cancel_reason());
        // What etcd also says when the token has run out.
        Err(if reason.contains("denied") || reason.contains("token") {
            Fault::NotSignedIn { reason }
        } else {
            Fault::Unavailable { reason, sent: true }
        })
    }

    fn take(&mut self, response: &etcd_client::WatchResponse) {
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let Some(name) = kv.key().strip_prefix(self.prefix.as_bytes()) else {
                continue;
            };
            let name = String::from_utf8_lossy(name).into_owned();
            self.ready.push_back(match event.event_type() {
                EventType::Put => Change::Put(Entry {
                    name,
                    value: kv.value().to_vec(),
                    version: Version(kv.mod_revision().to_string()),
                }),
                EventType::Delete => Change::Delete { name },
            });
        }
    }

    fn failed(&self, fault: Fault) -> StoreError {
        if !matches!(fault, Fault::Compacted) {
            self.cluster.discard(self.used);
        }
        meaning(&self.cluster, self.from, fault)
    }
}

fn meaning(cluster: &Cluster, from: Point, fault: Fault) -> StoreError {
    match fault {
        Fault::Compacted => StoreError::Compacted {
            cursor: from.cursor(),
        },
        fault => cluster.error(fault),
    }
}
