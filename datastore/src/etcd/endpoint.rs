//! Reaching an etcd cluster: one client for each member, made when needed,
//! thrown away when it failed, and the next member tried.
//!
//! Every call goes through [`Cluster::call`], which bounds its time, signs in
//! again when the token is no longer good, and says what went wrong in a sentence.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use viaduct_model::Invalid;

use super::fault::{Fault, fault_of};
use crate::connectivity::Monitor;
use crate::store::StoreError;

/// How long one attempt at a call may take with one member, and with several.
const ATTEMPT_ALONE: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(2);
/// How many members are asked for one call.
const ATTEMPTS: usize = 3;
/// etcd closes connections that are probed more often than every 5 s.
const PROBE_EVERY: Duration = Duration::from_secs(6);
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// The files of a TLS connection.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsFiles {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Whom to sign in as. The password is read each time that it is needed, so that
/// it can be changed, and is shown nowhere.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password_file: PathBuf,
}

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) hosts: Vec<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) credentials: Option<Credentials>,
}

impl Access {
    /// Reads every file once, so that a wrong path is found at start.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        self.options()?;
        if let Some(credentials) = &self.credentials {
            password(&credentials.password_file)?;
        }
        Ok(())
    }

    fn options(&self) -> Result<ConnectOptions, Invalid> {
        let options = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT)
            .with_keep_alive(PROBE_EVERY, PROBE_PATIENCE)
            // etcd takes probes without a call in flight for an attack.
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(PROBE_EVERY)
            .with_require_leader(true);
        let Some(files) = &self.tls else {
            return Ok(options);
        };
        let mut tls = TlsOptions::new();
        if let Some(ca) = &files.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read("--etcd-ca", ca)?));
        }
        if let (Some(cert), Some(key)) = (&files.cert, &files.key) {
            tls = tls.identity(Identity::from_pem(
                read("--etcd-cert", cert)?,
                read("--etcd-key", key)?,
            ));
        }
        Ok(options.with_tls(tls))
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, Invalid> {
    std::fs::read(path).map_err(|e| {
        Invalid::new(
            "flag",
            flag,
            path.display(),
            format!("a file that can be read is needed ({e})"),
        )
    })
}

fn password(path: &Path) -> Result<String, Invalid> {
    const FLAG: &str = "--etcd-password-file";
    let text = String::from_utf8(read(FLAG, path)?);
    match text.as_deref().map(|t| t.trim_end_matches(['\r', '\n'])) {
        Ok(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(Invalid::new(
            "flag",
            FLAG,
            path.display(),
            "the file must hold the password and nothing else",
        )),
    }
}

/// A member of the cluster, and the client that talks to it.
struct Member {
    url: String,
    /// The client with its number: whoever found it broken throws away that one
    /// and not its successor. Locked for the time of a clone only.
    client: Mutex<(u64, Option<Client>)>,
}

impl Member {
    fn slot(&self) -> std::sync::MutexGuard<'_, (u64, Option<Client>)> {
        self.client.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn forget(&self, number: u64) {
        let mut slot = self.slot();
        if slot.0 == number {
            slot.1 = None;
        }
    }
}

/// Which client was used, for throwing it away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    member: usize,
    number: u64,
}

/// An etcd cluster.
pub(super) struct Cluster {
    pub(super) describe: String,
    pub(super) monitor: Monitor,
    access: Access,
    members: Vec<Member>,
    current: AtomicUsize,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.describe).finish()
    }
}

impl Cluster {
    pub(super) fn new(access: Access) -> Self {
        let scheme = if access.tls.is_some() {
            "etcds"
        } else {
            "etcd"
        };
        let describe = format!("{scheme}://{}", access.hosts.join(","));
        let web = if access.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let members: Vec<_> = access
            .hosts
            .iter()
            .map(|host| Member {
                url: format!("{web}://{host}"),
                client: Mutex::new((0, None)),
            })
            .collect();
        // Clients spread over the members by chance.
        let current = AtomicUsize::new(rand::random_range(0..members.len().max(1)));
        Self {
            monitor: Monitor::new(describe.clone()),
            describe,
            access,
            members,
            current,
        }
    }

    /// Calls etcd. With `repeatable`, another member is asked when one fails in
    /// the midst of it; a call that may not be done twice only when it was not
    /// sent. Answers also which client did it.
    pub(super) async fn call<T, F>(
        &self,
        repeatable: bool,
        f: impl Fn(Client) -> F,
    ) -> Result<(T, Used), Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let attempts = self.members.len().clamp(1, ATTEMPTS);
        let patience = if attempts == 1 {
            ATTEMPT_ALONE
        } else {
            ATTEMPT
        };
        let mut signed_in_again = false;
        let mut attempt = 1;
        loop {
            let outcome = tokio::time::timeout(patience, self.attempt(&f)).await;
            let fault = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(fault)) => fault,
                Err(_) => {
                    let member = self.current.load(Ordering::Relaxed) % self.members.len();
                    let number = self.members[member].slot().0;
                    self.discard(Used { member, number });
                    Fault::Unavailable {
                        reason: format!("no answer within {} s", patience.as_secs()),
                        sent: true,
                    }
                }
            };
            match &fault {
                // The token ran out, or the password was changed.
                Fault::NotSignedIn { .. }
                    if self.access.credentials.is_some() && !signed_in_again =>
                {
                    signed_in_again = true;
                }
                Fault::Unavailable { sent, .. } if attempt < attempts && (repeatable || !sent) => {
                    attempt += 1;
                }
                _ => return Err(fault),
            }
        }
    }

    async fn attempt<T, F>(&self, f: &impl Fn(Client) -> F) -> Result<(T, Used), Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let member = self.current.load(Ordering::Relaxed) % self.members.len();
        let (client, used) = self.client(member).await?;
        match f(client).await {
            Ok(answer) => Ok((answer, used)),
            Err(e) => {
                let fault = fault_of(&e);
                match &fault {
                    Fault::Unavailable { .. } => self.discard(used),
                    // The same member again, with a new token.
                    Fault::NotSignedIn { .. } => self.members[member].forget(used.number),
                    _ => {}
                }
                Err(fault)
            }
        }
    }

    /// Throws a client away that is of no use, and moves on to the next member.
    pub(super) fn discard(&self, used: Used) {
        self.members[used.member].forget(used.number);
        // Only the first one to find out moves on.
        let next = (used.member + 1) % self.members.len();
        let _ =
            self.current
                .compare_exchange(used.member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn client(&self, member: usize) -> Result<(Client, Used), Fault> {
        let it = &self.members[member];
        {
            let slot = it.slot();
            if let (number, Some(client)) = &*slot {
                let number = *number;
                return Ok((client.clone(), Used { member, number }));
            }
        }
        // Read anew each time: certificates and passwords are replaced in place.
        let options = self.access.options().map_err(Fault::unreadable)?;
        // Does not touch the network: the channel connects with the first call.
        let mut client = Client::connect([it.url.as_str()], Some(options))
            .await
            .map_err(|e| fault_of(&e))?;
        if let Some(credentials) = &self.access.credentials {
            let password = password(&credentials.password_file).map_err(Fault::unreadable)?;
            let user = credentials.user.clone();
            if let Err(e) = client.update_user(Some((user, password))).await {
                let fault = fault_of(&e);
                if let Fault::Unavailable { .. } = fault {
                    let number = it.slot().0;
                    self.discard(Used { member, number });
                }
                return Err(match fault {
                    Fault::NotSignedIn { reason } => Fault::Refused { reason },
                    fault => fault,
                });
            }
        }
        let mut slot = it.slot();
        slot.0 += 1;
        slot.1 = Some(client.clone());
        let number = slot.0;
        drop(slot);
        Ok((client, Used { member, number }))
    }

    /// What a caller is told of a fault that has no other meaning to it.
    pub(super) fn error(&self, fault: Fault) -> StoreError {
        let store = self.describe.clone();
        match fault {
            Fault::Refused { reason } | Fault::NotSignedIn { reason } => {
                StoreError::Refused { store, reason }
            }
            Fault::Unavailable { reason, .. } => StoreError::Unavailable { store, reason },
            Fault::LeaseGone => StoreError::Unavailable {
                store,
                reason: "the lease is not known".into(),
            },
            Fault::Compacted => StoreError::Unavailable {
                store,
                reason: "its history was compacted meanwhile".into(),
            },
        }
    }
}
