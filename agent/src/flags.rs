//! The agent's command line. Everything that can be judged from the flags alone
//! is judged here, before anything is touched.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use regex_lite::Regex;
use viaduct_datastore::{NodeCidrsArgs, StoreArgs};
use viaduct_model::{Cidr, Family, Invalid, NodeName};

use crate::egress;

use crate::backend::{self, Backend, Tuning};

/// Keeps this node's kernel as the cluster wants it, and wires its pods.
///
/// Every flag can also be given as an environment variable: VIADUCT_ and its name in capitals.
#[derive(Debug, Parser)]
#[command(name = "viaduct-agent", version)]
pub struct Flags {
    /// The datastore and how to reach it.
    #[command(flatten)]
    pub store: StoreArgs,

    /// How pod traffic crosses the underlay: vxlan (everywhere), ipip (fewer bytes, where
    /// the underlay carries it) or host-gw (none, where all nodes are on one network)
    #[arg(long, env = "VIADUCT_BACKEND", value_parser = parse_backend)]
    pub backend: &'static Backend,

    /// With vxlan and ipip: reach the peers that are on the same network by plain routes,
    /// and only the others by the tunnel
    #[arg(long, env = "VIADUCT_DIRECT_ROUTING")]
    pub direct_routing: bool,

    /// Pod CIDRs of Nodes.
    #[command(flatten)]
    pub node_cidrs: NodeCidrsArgs,

    /// This node's name [default: the host name]
    #[arg(long, env = "VIADUCT_NODE_NAME", value_parser = parse_node_name)]
    pub node_name: Option<NodeName>,

    /// A label that pools select nodes by, as key=value; may be repeated
    #[arg(long = "node-label", env = "VIADUCT_NODE_LABEL", value_delimiter = ',', value_name = "KEY=VALUE", value_parser = parse_label)]
    pub node_labels: Vec<(String, String)>,

    /// The device that carries the tunnels [default: the default route's]
    #[arg(long, env = "VIADUCT_IFACE", group = "underlay", value_name = "NAME")]
    pub iface: Option<String>,

    /// A regular expression that matches the name of the device that carries the tunnels
    #[arg(long, env = "VIADUCT_IFACE_REGEX", group = "underlay", value_name = "RE", value_parser = parse_regex)]
    pub iface_regex: Option<Regex>,

    /// Tunnels use the device and address that this address is reached by
    #[arg(long, env = "VIADUCT_CAN_REACH", group = "underlay", value_name = "IP")]
    pub can_reach: Option<IpAddr>,

    /// The address that peers reach this node at, if it is another than the device's
    #[arg(long, env = "VIADUCT_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<Ipv4Addr>,

    /// The MTU of pods in bytes [default: the underlay's less the tunnel's overhead]
    #[arg(long, env = "VIADUCT_MTU", value_parser = clap::value_parser!(u32).range(576..=65535))]
    pub mtu: Option<u32>,

    /// The VXLAN network identifier, the same on all nodes
    #[arg(long, env = "VIADUCT_VNI", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_777_215))]
    pub vni: u32,

    /// The UDP port of the VTEP (vxlan), the same on all nodes
    #[arg(long, env = "VIADUCT_PORT", default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Whether packets from pods to the outside get an address of the node; pools can
    /// say no for their own pods (natOutgoing)
    #[arg(long, env = "VIADUCT_MASQUERADE", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub masquerade: bool,

    /// A destination that sees pods' own addresses, as an IPv4 CIDR; may be repeated
    #[arg(long, env = "VIADUCT_NO_MASQUERADE_TO", value_delimiter = ',', value_name = "CIDR", value_parser = parse_destination)]
    pub no_masquerade_to: Vec<Cidr>,

    /// Whether the nodes' own addresses count as outside. With false, nodes see pods'
    /// addresses; the underlay must then carry packets from pods' addresses, and the
    /// nodes' rp_filter must not be strict
    #[arg(long, env = "VIADUCT_MASQUERADE_TO_NODES", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub masquerade_to_nodes: bool,

    /// Whether masqueraded connections get a random source port, so that two of them
    /// never race for one
    #[arg(long, env = "VIADUCT_MASQUERADE_RANDOM_FULLY", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub masquerade_random_fully: bool,

    /// Where the CNI socket, the ledger and subnet.env live; must not outlive a reboot
    #[arg(
        long,
        env = "VIADUCT_RUN_DIR",
        default_value = "/run/viaduct",
        value_name = "DIR"
    )]
    pub run_dir: PathBuf,

    /// The kernel's settings, where they can be written: a container that is not privileged
    /// can only read its own /proc/sys, and has the host's mounted elsewhere
    #[arg(
        long,
        env = "VIADUCT_PROC_SYS",
        default_value = crate::kernel::SETTINGS,
        value_name = "DIR"
    )]
    pub proc_sys: PathBuf,

    /// How long a pod's address rests before another pod gets it, unless no other is free
    #[arg(long, env = "VIADUCT_ADDRESS_COOL_DOWN", default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub address_cool_down: Duration,

    /// How long a block has to be empty and dispensable before it is given back
    #[arg(
        long,
        env = "VIADUCT_GIVE_BACK_AFTER",
        default_value = "10m",
        value_name = "TIME",
        value_parser = parse_duration
    )]
    pub give_back_after: Duration,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(
        long,
        env = "VIADUCT_HTTP",
        default_value = "127.0.0.1:9870",
        value_name = "ADDRESS:PORT"
    )]
    pub http: SocketAddr,

    /// Register, program the kernel once, and exit when it is verified
    #[arg(long, env = "VIADUCT_ONCE")]
    pub once: bool,
}

impl Flags {
    /// Checks what no flag shows alone.
    ///
    /// # Errors
    /// Names the flag and what is allowed.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.direct_routing && self.backend.link_type.is_none() {
            return Err(Invalid::new(
                "flag",
                "--direct-routing",
                "true",
                format!(
                    "only with a backend that has a tunnel, vxlan or ipip: {} always routes directly",
                    self.backend.name
                ),
            ));
        }
        Ok(())
    }

    /// What the flags say about backends.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            vni: self.vni,
            port: self.port,
        }
    }

    /// The node's name: the flag's, or the host name if that can be one.
    ///
    /// # Errors
    /// When the host name is no valid node name.
    pub fn node_name(&self, host_name: &str) -> Result<NodeName, Invalid> {
        if let Some(name) = &self.node_name {
            return Ok(name.clone());
        }
        host_name
            .to_ascii_lowercase()
            .parse()
            .map_err(|e: Invalid| {
                Invalid::new(
                    "flag",
                    "--node-name",
                    host_name,
                    format!(
                        "it is not given, and the host name is no node name: {}",
                        e.allowed
                    ),
                )
            })
    }

    /// The labels; a key given twice takes its last value.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.node_labels.iter().cloned().collect()
    }

    /// What the user decides about pods' way to the outside.
    pub fn egress(&self) -> egress::Options {
        egress::Options {
            masquerade: self.masquerade,
            exempt: self.no_masquerade_to.clone(),
            to_nodes: self.masquerade_to_nodes,
            random_fully: self.masquerade_random_fully,
        }
    }
}

fn parse_backend(s: &str) -> Result<&'static Backend, String> {
    backend::by_name(s).ok_or_else(|| {
        let names: Vec<&str> = backend::ALL.iter().map(|b| b.name).collect();
        format!("allowed: {}", names.join(", "))
    })
}

fn parse_node_name(s: &str) -> Result<NodeName, String> {
    s.parse()
        .map_err(|e: Invalid| format!("allowed: {}", e.allowed))
}

fn parse_duration(s: &str) -> Result<Duration, String> {
    humantime::parse_duration(s).map_err(|_| "allowed: a duration such as 30s, 5m or 0s".to_owned())
}

fn parse_regex(s: &str) -> Result<Regex, String> {
    Regex::new(s).map_err(|e| format!("not a regular expression: {e}"))
}

fn parse_destination(s: &str) -> Result<Cidr, String> {
    const ALLOWED: &str = "allowed: an IPv4 CIDR such as 192.0.2.0/24";
    match s.parse::<Cidr>() {
        Ok(cidr) if cidr.family() == Family::V4 => Ok(cidr),
        Ok(_) => Err(format!(
            "{ALLOWED}; this release's pods have IPv4 addresses"
        )),
        Err(_) => Err(ALLOWED.to_owned()),
    }
}

fn parse_label(s: &str) -> Result<(String, String), String> {
    match s.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("allowed: key=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Flags, String> {
        let base = [
            "viaduct-agent",
            "--datastore",
            "sqlite:/tmp/x.db",
            "--backend",
            "vxlan",
        ];
        Flags::try_parse_from(base.iter().chain(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Flags::command().debug_assert();
    }

    #[test]
    fn bad_values_are_refused_with_flag_value_and_what_is_allowed() {
        for (args, needles) in [
            (["--node-name", "a/b"], ["--node-name", "a/b", "lower-case"]),
            (["--node-name", ""], ["--node-name", "", "lower-case"]),
            (["--mtu", "68"], ["--mtu", "68", "576"]),
            (["--vni", "0"], ["--vni", "0", "16777215"]),
            (["--iface-regex", "("], ["--iface-regex", "(", "regular"]),
            (["--node-label", "x"], ["--node-label", "x", "key=value"]),
            (["--can-reach", "host"], ["--can-reach", "host", "IP"]),
            (
                ["--no-masquerade-to", "10.0.0.0/33"],
                ["--no-masquerade-to", "10.0.0.0/33", "IPv4 CIDR"],
            ),
            (
                ["--no-masquerade-to", "fd00::/8"],
                ["--no-masquerade-to", "fd00::/8", "IPv4 CIDR"],
            ),
            (
                ["--masquerade=maybe", "--once"],
                ["--masquerade", "maybe", "true, false"],
            ),
        ] {
            let error = parse(&args).unwrap_err();
            for needle in needles {
                assert!(error.contains(needle), "{args:?}: {error}");
            }
        }
    }

    #[test]
    fn unknown_backends_name_what_is_allowed() {
        let error = Flags::try_parse_from(["a", "--datastore", "sqlite:/x", "--backend", "gre"])
            .unwrap_err();
        assert!(
            error.to_string().contains("allowed: vxlan, ipip, host-gw"),
            "{error}"
        );
    }

    #[test]
    fn direct_routing_needs_a_backend_that_has_a_tunnel() {
        assert_eq!(parse(&["--direct-routing"]).unwrap().check(), Ok(()));
        let flags = ["a", "--datastore", "sqlite:/x", "--backend", "host-gw"];
        let parse = |args: &[&str]| Flags::try_parse_from(flags.iter().chain(args)).unwrap();
        assert_eq!(parse(&[]).check(), Ok(()));
        let error = parse(&["--direct-routing"]).check().unwrap_err();
        assert_eq!(error.field, "--direct-routing");
    }

    #[test]
    fn underlay_flags_exclude_each_other() {
        assert!(parse(&["--iface", "eth0", "--can-reach", "10.0.0.1"]).is_err());
        assert!(parse(&["--iface", "eth0", "--public-ip", "192.0.2.1"]).is_ok());
    }

    #[test]
    fn pods_are_masqueraded_unless_the_user_says_otherwise() {
        let egress = parse(&[]).unwrap().egress();
        assert!(egress.masquerade && egress.to_nodes && egress.random_fully);
        let egress = parse(&[
            "--masquerade=false",
            "--no-masquerade-to",
            "10.0.0.0/8,192.168.0.0/16",
            "--no-masquerade-to",
            "172.16.0.0/12",
        ])
        .unwrap()
        .egress();
        assert!(!egress.masquerade);
        assert_eq!(egress.exempt.len(), 3);
    }

    #[test]
    fn the_host_name_stands_in_for_the_node_name() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.node_name("Node-1").unwrap().as_str(), "node-1");
        assert_eq!(
            flags.node_name("under_score").unwrap_err().field,
            "--node-name"
        );
    }
}
