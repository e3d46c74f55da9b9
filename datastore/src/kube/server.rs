//! Calls to the API server: bounded in time, with a new client when the old one is of no
//! use, and a fault that says what went wrong.
//!
//! Every request of the store goes through [`Server::call`] or [`Server::events`]. What
//! is denied to us is remembered by verb and resource until it works, so that the part
//! of the store that does work does not hide it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::BoxStream;
use http::Request;
use kube::Client;
use kube::api::WatchEvent;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use viaduct_model::Invalid;

use super::access::{self, Access};
use super::fault::{Fault, fault_of};
use super::resource::{API_VERSION, Object};
use crate::connectivity::Monitor;
use crate::store::{Connectivity, StoreError};

/// How long one attempt at a call may take, and all of them together.
const ATTEMPT: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_millis(5500);

/// What is asked of the API server.
#[derive(Debug, Clone)]
pub(super) struct Call {
    verb: &'static str,
    resource: String,
    request: Request<Vec<u8>>,
}

impl Call {
    /// A request, with verb and resource as permissions name them.
    pub(super) fn new(
        verb: &'static str,
        resource: impl Into<String>,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Self, Fault> {
        let request = request.map_err(|e| Fault::Invalid {
            reason: e.to_string(),
        })?;
        Ok(Self {
            verb,
            resource: resource.into(),
            request,
        })
    }

    /// Whether doing it twice does no more than doing it once.
    fn repeatable(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }

    fn label(&self) -> String {
        format!("{} {}", self.verb, self.resource)
    }
}

/// What a watch tells.
pub(super) type Events = BoxStream<'static, kube::Result<WatchEvent<Object>>>;

/// The API server, as this store reaches it.
pub(super) struct Server {
    pub(super) describe: String,
    /// The namespace that our own things are in.
    pub(super) namespace: String,
    monitor: Monitor,
    access: Access,
    /// The client with its number: whoever found it broken throws away that one and not
    /// its successor. Locked for the time of a clone only.
    client: Mutex<(u64, Option<Client>)>,
    /// What we lack the permission for, by verb and resource.
    denied: Mutex<BTreeMap<String, String>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.describe).finish()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Reads the configuration once, so that a wrong file is found at start; connects
    /// when it is used.
    pub(super) async fn new(access: Access) -> Result<Self, Invalid> {
        let config = access.config().await?;
        let describe = format!("kube ({})", config.cluster_url);
        let namespace = config.default_namespace.clone();
        let client = access::client(config).map_err(|e| {
            Invalid::new(
                "flag",
                "--datastore",
                "kube",
                format!("the configuration cannot be used: {e}"),
            )
        })?;
        Ok(Self {
            monitor: Monitor::new(describe.clone()),
            describe,
            namespace,
            access,
            client: Mutex::new((1, Some(client))),
            denied: Mutex::default(),
        })
    }

    /// Whether it answers.
    pub(super) fn connectivity(&self) -> watch::Receiver<Connectivity> {
        self.monitor.subscribe()
    }

    /// Asks, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Fault> {
        let request = &call.request;
        self.attempts(call, |client: Client| {
            let request = request.clone();
            async move { client.request::<T>(request).await }
        })
        .await
        .map(|(answer, _)| answer)
    }

    /// Opens a watch. Says also which client it runs over.
    pub(super) async fn events(&self, call: &Call) -> Result<(Events, u64), Fault> {
        let request = &call.request;
        self.attempts(call, |client: Client| {
            let request = request.clone();
            async move {
                let events = client.request_events::<Object>(request).await?;
                Ok(Box::pin(events) as Events)
            }
        })
        .await
    }

    async fn attempts<T, F>(
        &self,
        call: &Call,
        ask: impl Fn(Client) -> F,
    ) -> Result<(T, u64), Fault>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let begun = Instant::now();
        let mut again = call.repeatable();
        let mut signed_in_again = false;
        let outcome = loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let fault = match self.attempt(&ask, left.min(ATTEMPT)).await {
                Ok(answer) => break Ok(answer),
                Err(fault) => fault,
            };
            let left = PATIENCE.saturating_sub(begun.elapsed());
            match &fault {
                // It was not done, whatever it was.
                Fault::Busy { after, .. } if *after < left => tokio::time::sleep(*after).await,
                // The token was replaced, or the connection was an old one.
                Fault::NotSignedIn { .. } if !signed_in_again => signed_in_again = true,
                Fault::Unavailable { broken: true, .. } if again && left > ATTEMPT / 4 => {
                    again = false;
                }
                _ => break Err(fault),
            }
        };
        self.saw(&call.label(), &outcome);
        outcome
    }

    async fn attempt<T, F>(
        &self,
        ask: &impl Fn(Client) -> F,
        patience: Duration,
    ) -> Result<(T, u64), Fault>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let (client, number) = self.client().await?;
        let fault = match tokio::time::timeout(patience, ask(client)).await {
            Ok(Ok(answer)) => return Ok((answer, number)),
            Ok(Err(e)) => fault_of(&e),
            Err(_) => Fault::Unavailable {
                reason: format!("no answer within {:.1} s", patience.as_secs_f32()),
                broken: true,
            },
        };
        if matches!(
            fault,
            Fault::Unavailable { broken: true, .. } | Fault::NotSignedIn { .. }
        ) {
            self.discard(number);
        }
        Err(fault)
    }

    async fn client(&self) -> Result<(Client, u64), Fault> {
        if let (number, Some(client)) = &*locked(&self.client) {
            return Ok((client.clone(), *number));
        }
        // What could be read at start cannot be read now.
        let unreadable = |reason: String| Fault::NotSignedIn { reason };
        let config = self.access.config().await;
        let config = config.map_err(|e| unreadable(e.to_string()))?;
        let client = access::client(config).map_err(|e| unreadable(e.to_string()))?;
        let mut slot = locked(&self.client);
        slot.0 += 1;
        slot.1 = Some(client.clone());
        Ok((client, slot.0))
    }

    /// Throws a client away that is of no use.
    pub(super) fn discard(&self, number: u64) {
        let mut slot = locked(&self.client);
        if slot.0 == number {
            slot.1 = None;
        }
    }

    /// Takes the outcome of a call, or of a watch that had begun, into what is published
    /// about this store.
    pub(super) fn saw<T>(&self, label: &str, outcome: &Result<T, Fault>) {
        let missing = {
            let mut denied = locked(&self.denied);
            match outcome {
                Err(Fault::Denied { reason }) => {
                    denied.insert(label.to_owned(), reason.clone());
                }
                Err(Fault::NoKind) => {
                    denied.insert(label.to_owned(), not_installed());
                }
                Err(Fault::NotSignedIn { .. } | Fault::Unavailable { .. } | Fault::Busy { .. }) => {
                }
                _ => {
                    denied.remove(label);
                }
            }
            denied.values().next().cloned()
        };
        let told = match (outcome, missing) {
            (_, Some(reason)) => Err(self.refused(reason)),
            (
                Err(
                    fault @ (Fault::NotSignedIn { .. }
                    | Fault::Unavailable { .. }
                    | Fault::Busy { .. }),
                ),
                None,
            ) => Err(self.error(fault.clone())),
            _ => Ok(()),
        };
        // Told on: whoever called has the outcome itself.
        let _ = self.monitor.saw(told);
    }

    /// What a caller is told of a fault that has no other meaning to it.
    pub(super) fn error(&self, fault: Fault) -> StoreError {
        let unavailable = |reason: String| StoreError::Unavailable {
            store: self.describe.clone(),
            reason,
        };
        match fault {
            Fault::Unavailable { reason, .. } => unavailable(reason),
            Fault::Busy { reason, .. } => unavailable(format!("it is busy: {reason}")),
            Fault::Denied { reason } | Fault::NotSignedIn { reason } => self.refused(reason),
            Fault::NoKind => self.refused(not_installed()),
            Fault::Invalid { reason } => self.refused(reason),
            Fault::NoObject => unavailable("the object is gone".into()),
            Fault::Exists => unavailable("the object exists already".into()),
            Fault::Conflict => unavailable("the object was changed by somebody else".into()),
            Fault::Expired => unavailable("its history was compacted meanwhile".into()),
        }
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Refused {
            store: self.describe.clone(),
            reason,
        }
    }
}

fn not_installed() -> String {
    format!(
        "it does not know the resources of {API_VERSION}; install the definitions of this release: kubectl apply -k deploy/crds"
    )
}
