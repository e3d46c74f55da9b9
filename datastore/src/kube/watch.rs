//! Watching a collection of objects from a resource version on.
//!
//! The API server ends every watch after some minutes; one that ended in its time is
//! continued from where it was, without a list. Any other end is an error: whoever
//! follows lists anew, which is right whatever happened meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::api::{WatchEvent, WatchParams};

use super::fault::{Fault, fault_of, of_status};
use super::resource::Object;
use super::server::{Call, Events, Server};

/// How long we ask for; the API server may end it earlier.
const LENGTH: Duration = Duration::from_secs(290);
/// How much longer it may take before it counts as dead.
const GRACE: Duration = Duration::from_secs(20);

/// What is watched.
#[derive(Debug, Clone)]
pub(super) struct Range {
    /// The path of the collection.
    pub(super) path: String,
    /// The resource as permissions name it.
    pub(super) resource: &'static str,
    /// This one object only.
    pub(super) name: Option<String>,
}

/// A change of one object.
pub(super) enum Event {
    /// Created or updated.
    Put(Object),
    /// Deleted; as it was last.
    Gone(Object),
}

/// One watch.
pub(super) struct Watch {
    server: Arc<Server>,
    range: Range,
    events: Events,
    client: u64,
    begun: Instant,
    /// What was seen last, so that it can go on from there.
    at: String,
}

impl Watch {
    /// Watches from a resource version on.
    pub(super) async fn begin(
        server: Arc<Server>,
        range: Range,
        from: String,
    ) -> Result<Self, Fault> {
        let (events, client) = open(&server, &range, &from).await?;
        Ok(Self {
            server,
            range,
            events,
            client,
            begun: Instant::now(),
            at: from,
        })
    }

    /// The next change. After an error there is none.
    pub(super) async fn next(&mut self) -> Result<Event, Fault> {
        loop {
            let left = (LENGTH + GRACE).saturating_sub(self.begun.elapsed());
            let fault = match tokio::time::timeout(left, self.events.next()).await {
                Ok(Some(Ok(event))) => match self.take(event) {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => continue,
                    Err(fault) => fault,
                },
                Ok(Some(Err(e))) => fault_of(&e),
                // It ended in its time, as all watches do.
                Ok(None) if self.begun.elapsed() + GRACE >= LENGTH => {
                    let (events, client) = open(&self.server, &self.range, &self.at).await?;
                    (self.events, self.client) = (events, client);
                    self.begun = Instant::now();
                    continue;
                }
                Ok(None) => Fault::Unavailable {
                    reason: "the watch was closed".into(),
                    broken: true,
                },
                Err(_) => Fault::Unavailable {
                    reason: "the watch went silent".into(),
                    broken: true,
                },
            };
            if let Fault::Unavailable { broken: true, .. } = fault {
                self.server.discard(self.client);
            }
            let outcome: Result<Event, Fault> = Err(fault);
            self.server
                .saw(&format!("watch {}", self.range.resource), &outcome);
            return outcome;
        }
    }

    fn take(&mut self, event: WatchEvent<Object>) -> Result<Option<Event>, Fault> {
        let (object, gone) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(bookmark) => {
                self.at = bookmark.metadata.resource_version;
                return Ok(None);
            }
            WatchEvent::Error(status) => return Err(of_status(&status)),
        };
        self.at.clone_from(&object.metadata.resource_version);
        Ok(Some(if gone {
            Event::Gone(object)
        } else {
            Event::Put(object)
        }))
    }
}

async fn open(server: &Server, range: &Range, from: &str) -> Result<(Events, u64), Fault> {
    let mut params = WatchParams::default().timeout(u32::try_from(LENGTH.as_secs()).unwrap_or(290));
    if let Some(name) = &range.name {
        params = params.fields(&format!("metadata.name={name}"));
    }
    let request = kube::core::Request::new(range.path.as_str()).watch(&params, from);
    server
        .events(&Call::new("watch", range.resource, request)?)
        .await
}
