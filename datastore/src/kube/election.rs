//! Elections by a Lease (coordination.k8s.io), as Kubernetes' own controllers hold them.
//!
//! The leader renews it and stops believing well before another may take it, by its own
//! monotonic clock; the others take it when it has not changed for as long as it is good
//! for, by theirs. No two clocks are compared: the times in the Lease are for people.
//! Every write of it carries the resource version that was read.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::List;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::params::{GetParams, ListParams};
use tokio::time::Instant;

use super::fault::Fault;
use super::rivals::{self, Verdict};
use super::server::{Call, Server};
use super::watch::{Range, Watch};
use crate::store::{Leadership, StoreError};
use crate::tenure::{self, Proof, RETRY, TTL, Term};

/// The longest that another's promise is believed.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits until this process leads.
pub(super) async fn campaign(
    server: &Arc<Server>,
    manager: &str,
    election: &str,
    identity: &str,
) -> Result<Leadership, StoreError> {
    let seat = Seat {
        server: server.clone(),
        manager: manager.to_owned(),
        name: format!("viaduct-{election}"),
        identity: identity.to_owned(),
    };
    loop {
        let look = rivals::look(server, &seat.name).await;
        let dead = match look.map_err(|fault| server.error(fault))? {
            Verdict::Alone(dead) => dead,
            Verdict::Second(theirs) => return Err(seat.second(theirs)),
        };
        let free = seat.free().await;
        let proved = Instant::now();
        let outcome = match free {
            Ok(lease) => seat.take(lease).await,
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok(lease) => {
                // Two that came at the same moment: each looks again once its Lease stands.
                match rivals::renewed(server, &seat.name, &dead).await {
                    Ok(None) => return Ok(tenure::lead(Office { seat, lease }, proved)),
                    Ok(Some(theirs)) => {
                        seat.give_up(lease).await;
                        return Err(seat.second(theirs));
                    }
                    Err(fault) => {
                        seat.give_up(lease).await;
                        return Err(server.error(fault));
                    }
                }
            }
            // Somebody was quicker, or the history is gone: look again.
            Err(Fault::Exists | Fault::Conflict | Fault::NoObject | Fault::Expired) => {
                tokio::time::sleep(RETRY.mul_f64(rand::random_range(0.1..=1.0))).await;
            }
            Err(fault) => return Err(server.error(fault)),
        }
    }
}

/// The Lease of an election and who wants it.
struct Seat {
    server: Arc<Server>,
    manager: String,
    name: String,
    identity: String,
}

impl Seat {
    fn path(&self) -> String {
        let namespace = &self.server.namespace;
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
    }

    async fn read(&self) -> Result<Option<Lease>, Fault> {
        let request = kube::core::Request::new(self.path()).get(&self.name, &GetParams::default());
        match self
            .server
            .call(&Call::new("get", "leases", request)?)
            .await
        {
            Ok(lease) => Ok(Some(lease)),
            Err(Fault::NoObject) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The Lease, and from where on to watch it. Not from its own resource version: a Lease
    /// that nobody has renewed for long is older than what the API server remembers.
    async fn find(&self) -> Result<(Option<Lease>, String), Fault> {
        let params = ListParams::default().fields(&format!("metadata.name={}", self.name));
        let request = kube::core::Request::new(self.path()).list(&params);
        let call = Call::new("list", "leases", request)?;
        let mut found: List<Lease> = self.server.call(&call).await?;
        let from = found.metadata.resource_version.unwrap_or_default();
        Ok((found.items.pop(), from))
    }

    /// Waits until the Lease may be taken; as it is then.
    async fn free(&self) -> Result<Option<Lease>, Fault> {
        let range = Range {
            path: self.path(),
            resource: "leases",
            name: Some(self.name.clone()),
        };
        let (mut found, mut from) = self.find().await?;
        let mut seen = Instant::now();
        let mut changes: Option<Watch> = None;
        loop {
            let Some(lease) = &found else {
                return Ok(None);
            };
            let left = promise(lease).map(|promised| promised.saturating_sub(seen.elapsed()));
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return Ok(found);
            };
            let changed = match &mut changes {
                Some(watch) => tokio::time::timeout(left, watch.next()).await,
                None => {
                    match Watch::begin(self.server.clone(), range.clone(), from.clone()).await {
                        Ok(begun) => {
                            changes = Some(begun);
                            continue;
                        }
                        Err(fault) => Ok(Err(fault)),
                    }
                }
            };
            let now = match changed {
                // It was not renewed in its time.
                Err(_) => return Ok(found),
                Ok(Ok(_)) => self.read().await?,
                // What is waited for goes on: only a Lease that changes begins it anew.
                Ok(Err(Fault::Expired)) => {
                    tokio::time::sleep(RETRY.min(left)).await;
                    changes = None;
                    let (now, later) = self.find().await?;
                    from = later;
                    now
                }
                Ok(Err(fault)) => return Err(fault),
            };
            if version(now.as_ref()) != version(found.as_ref()) {
                seen = Instant::now();
            }
            found = now;
        }
    }

    /// Takes the Lease, as it was read, for ourselves.
    async fn take(&self, was: Option<Lease>) -> Result<Lease, Fault> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = was else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(LeaseSpec {
                acquire_time: Some(now.clone()),
                lease_transitions: Some(0),
                ..self.renewed(now, &self.identity)
            });
            let request =
                kube::core::Request::new(self.path()).create(&self.params(), bytes(&lease)?);
            return self
                .server
                .call(&Call::new("create", "leases", request)?)
                .await;
        };
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec {
            acquire_time: Some(now.clone()),
            lease_transitions: Some(transitions.unwrap_or(0).saturating_add(1)),
            ..self.renewed(now, &self.identity)
        });
        self.replace(lease).await
    }

    fn renewed(&self, now: MicroTime, holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(TTL.as_secs()).ok(),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// Writes the Lease if it still is as it was read.
    async fn replace(&self, mut lease: Lease) -> Result<Lease, Fault> {
        lease.metadata.managed_fields = None;
        let body = bytes(&lease)?;
        let request =
            kube::core::Request::new(self.path()).replace(&self.name, &self.params(), body);
        self.server
            .call(&Call::new("update", "leases", request)?)
            .await
    }

    fn params(&self) -> PostParams {
        PostParams {
            field_manager: Some(self.manager.clone()),
            ..PostParams::default()
        }
    }

    fn second(&self, theirs: String) -> StoreError {
        StoreError::SecondInstallation {
            theirs,
            ours: self.server.namespace.clone(),
        }
    }

    /// Leaves the Lease to whoever wants it. If this fails it runs out.
    async fn give_up(&self, mut lease: Lease) {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        let _ = self.replace(lease).await;
    }
}

/// How long the holder of a Lease may do without renewing it; `None`: nobody holds it.
fn promise(lease: &Lease) -> Option<Duration> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.as_ref().filter(|h| !h.is_empty())?;
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    Some(Duration::from_secs(seconds).clamp(TTL, LONGEST))
}

fn bytes(lease: &Lease) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(lease).map_err(|e| Fault::Invalid {
        reason: e.to_string(),
    })
}

/// A Lease that is ours, as it was last written.
struct Office {
    seat: Seat,
    lease: Lease,
}

impl Term for Office {
    fn name(&self) -> &str {
        &self.seat.name
    }

    async fn prove(&mut self) -> Proof {
        match self.renew().await {
            Ok(()) => Proof::Lasts,
            Err(Fault::Conflict | Fault::NoObject) => Proof::Over("its Lease was taken"),
            Err(_) => Proof::None,
        }
    }

    async fn resign(mut self) {
        let spec = self.lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let _ = self.seat.replace(self.lease).await;
    }
}

impl Office {
    /// Proves that the Lease is ours, by writing it.
    async fn renew(&mut self) -> Result<(), Fault> {
        let spec = self.lease.spec.get_or_insert_default();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let written = match self.seat.replace(self.lease.clone()).await {
            // A write of ours that was cut off may have arrived all the same. Then the
            // others count from that one: only another write proves anything.
            Err(Fault::Conflict) => match self.seat.read().await? {
                Some(lease) if holder(&lease) == Some(self.seat.identity.as_str()) => {
                    self.lease.metadata = lease.metadata;
                    self.seat.replace(self.lease.clone()).await
                }
                _ => Err(Fault::Conflict),
            },
            written => written,
        };
        self.lease = written?;
        Ok(())
    }
}

fn version(lease: Option<&Lease>) -> Option<&str> {
    lease?.metadata.resource_version.as_deref()
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}
