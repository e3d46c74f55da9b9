//! What a lab is made of.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use viaduct_model::Invalid;

use crate::environment;

/// The most nodes that fit the underlay 172.29.0.0/24.
pub const MAX_NODES: usize = 200;

/// What a lab is made of.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Nodes that [`Lab::up`](crate::Lab::up) makes: `n1`, `n2`, ...
    pub nodes: usize,
    /// Pods that it makes on each of them: `p1`, `p2`, ...
    pub pods: usize,
    /// Where the records are.
    pub datastore: Datastore,
    /// The prefix of all keys in etcd (`--etcd-prefix`).
    pub etcd_prefix: String,
    /// The pool that the controller bootstraps (`--pool`); none when absent.
    pub pool: Option<String>,
    /// How pod traffic crosses the underlay (`--backend`).
    pub backend: Backend,
    /// Whether adjacent nodes, as all are in a lab, reach each other by plain routes
    /// (`--direct-routing`).
    pub direct_routing: bool,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// More arguments for the controller.
    pub controller_args: Vec<String>,
    /// `RUST_LOG` and the like for all daemons.
    pub env: Vec<(String, String)>,
    /// Whether to start a controller at all.
    pub controller: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            pods: 1,
            datastore: Datastore::Sqlite,
            etcd_prefix: "/viaduct".to_owned(),
            pool: Some("10.64.0.0/16".to_owned()),
            backend: environment::backend(),
            direct_routing: false,
            agent_args: Vec::new(),
            controller_args: Vec::new(),
            env: Vec::new(),
            controller: true,
        }
    }
}

impl LabOptions {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Names the option and what is allowed.
    pub fn check(&self) -> Result<()> {
        environment::check()?;
        ensure!(
            self.nodes <= MAX_NODES,
            "--nodes {} is not allowed: the lab's underlay 172.29.0.0/24 holds up to {MAX_NODES}",
            self.nodes
        );
        ensure!(
            !(self.direct_routing && self.backend == Backend::HostGw),
            "--direct-routing is not allowed with --backend host-gw, which always routes directly"
        );
        Ok(())
    }

    /// The link that routes to peers' blocks name.
    pub fn way(&self) -> &'static str {
        let tunnel = self.backend.tunnel().filter(|_| !self.direct_routing);
        tunnel.unwrap_or(crate::underlay::NODE_LINK)
    }

    /// How pods' packets are to cross the underlay.
    pub fn carriage(&self) -> Carriage {
        if self.direct_routing {
            Carriage::Plain
        } else {
            self.backend.carriage()
        }
    }

    /// The agents' flags that choose it.
    pub fn backend_flags(&self) -> Vec<String> {
        let mut flags = vec!["--backend".to_owned(), self.backend.name().to_owned()];
        if self.direct_routing {
            flags.push("--direct-routing".to_owned());
        }
        flags
    }
}

/// A backend of the agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN.
    Vxlan,
    /// IPv4 in IPv4.
    Ipip,
    /// Plain routes.
    HostGw,
}

impl Backend {
    /// The name as `--backend` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::Ipip => "ipip",
            Backend::HostGw => "host-gw",
        }
    }

    /// The tunnel's link, if there is one.
    pub fn tunnel(self) -> Option<&'static str> {
        match self {
            Backend::Vxlan => Some("via.vx4"),
            Backend::Ipip => Some("via.ipip"),
            Backend::HostGw => None,
        }
    }

    /// What the underlay's MTU has more than pods'.
    pub fn overhead(self) -> u32 {
        match self {
            Backend::Vxlan => 50,
            Backend::Ipip => 20,
            Backend::HostGw => 0,
        }
    }

    /// How pods' packets cross the underlay, but for direct routing.
    pub fn carriage(self) -> Carriage {
        match self {
            Backend::Vxlan => Carriage::Vxlan,
            Backend::Ipip => Carriage::Ipip,
            Backend::HostGw => Carriage::Plain,
        }
    }
}

impl FromStr for Backend {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Backend::Vxlan, Backend::Ipip, Backend::HostGw]
            .into_iter()
            .find(|backend| backend.name() == text)
            .ok_or_else(|| Invalid::new("flag", "--backend", text, "vxlan, ipip or host-gw"))
    }
}

/// How pods' packets cross the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    /// In VXLAN.
    Vxlan,
    /// In another IPv4 header.
    Ipip,
    /// As they are.
    Plain,
}

impl Carriage {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Carriage::Vxlan => "VXLAN",
            Carriage::Ipip => "IPIP",
            Carriage::Plain => "plain",
        }
    }

    /// What stands behind "packets of pods", for people.
    pub fn clause(self) -> &'static str {
        match self {
            Carriage::Vxlan => "in VXLAN",
            Carriage::Ipip => "in IPIP",
            Carriage::Plain => "without a tunnel",
        }
    }

    /// What stands behind that when there was no other packet of pods.
    pub fn no_other(self) -> &'static str {
        match self {
            Carriage::Vxlan | Carriage::Ipip => "none without",
            Carriage::Plain => "none in one",
        }
    }
}

/// Where a lab keeps its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datastore {
    /// The embedded store, in a file of the lab's own.
    Sqlite,
    /// An etcd that the lab starts on its underlay.
    Etcd,
    /// An etcd that runs already; `host:port` each, dialled from where the lab
    /// was started.
    Relayed(Vec<String>),
    /// An API server of Kubernetes that the lab starts on its underlay.
    Kube {
        /// The directory of the programs `etcd`, `kube-apiserver` and `kubectl`.
        programs: PathBuf,
        /// The directory of the definitions of Viaduct's kinds, `deploy/crds`.
        definitions: PathBuf,
    },
}

impl FromStr for Datastore {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refused = |why: &str| Invalid::new("flag", "--datastore", text, why);
        const ALLOWED: &str = "sqlite (a file of the lab's own), etcd (started in the lab) or \
                               etcd://host:port[,host:port] (one that runs already)";
        match text {
            "sqlite" => return Ok(Datastore::Sqlite),
            "etcd" => return Ok(Datastore::Etcd),
            _ => {}
        }
        if text.starts_with("etcds://") {
            return Err(refused(
                "the lab reaches a running etcd through a relay, where its certificate would \
                 name another host; give an etcd:// URL without TLS",
            ));
        }
        let hosts = text
            .strip_prefix("etcd://")
            .ok_or_else(|| refused(ALLOWED))?;
        let endpoints: Vec<String> = hosts
            .split(',')
            .map(|host| match host.rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
                _ => format!("{host}:2379"),
            })
            .collect();
        if hosts
            .split(',')
            .any(|h| h.is_empty() || h.contains(['/', '@', ' ']))
        {
            return Err(refused(ALLOWED));
        }
        Ok(Datastore::Relayed(endpoints))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_say_how_packets_cross() {
        let carriage = |backend: &str, direct_routing| {
            let options = LabOptions {
                backend: backend.parse().unwrap(),
                direct_routing,
                ..LabOptions::default()
            };
            options.check().map(|()| options.carriage())
        };
        assert_eq!(carriage("vxlan", false).unwrap(), Carriage::Vxlan);
        assert_eq!(carriage("ipip", false).unwrap(), Carriage::Ipip);
        assert_eq!(carriage("ipip", true).unwrap(), Carriage::Plain);
        assert_eq!(carriage("host-gw", false).unwrap(), Carriage::Plain);
        assert!(carriage("host-gw", true).is_err());
        assert_eq!("gre".parse::<Backend>().unwrap_err().field, "--backend");
    }

    #[test]
    fn datastores_are_told_apart() {
        assert_eq!("sqlite".parse(), Ok(Datastore::Sqlite));
        assert_eq!("etcd".parse(), Ok(Datastore::Etcd));
        assert_eq!(
            "etcd://127.0.0.1:2399,[::1],h".parse(),
            Ok(Datastore::Relayed(vec![
                "127.0.0.1:2399".into(),
                "[::1]:2379".into(),
                "h:2379".into()
            ]))
        );
        for bad in [
            "",
            "mysql",
            "etcd://",
            "etcds://h:1",
            "etcd://a,,b",
            "etcd://u@h",
        ] {
            let error = bad.parse::<Datastore>().unwrap_err();
            assert_eq!(error.field, "--datastore", "{bad}");
        }
    }
}
