//! The command line, checked: every refusal names the flag, the value and what is
//! allowed.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Parser};
use viaduct_datastore::{NodeCidrsArgs, StoreArgs, StoreOptions};
use viaduct_model::{Cidr, Family, Invalid, Pool, PoolName, Record};

use crate::decide::Policy;
use crate::memory::LISTEN;

/// How long a pool's counts may be out of date.
const REFRESH: Duration = Duration::from_secs(60);

/// The shortest quarantine: nodes read their blocks' records five times in it.
const LEAST_QUARANTINE: Duration = Duration::from_secs(1);

/// Gives every node of a Viaduct overlay network its blocks of pod addresses.
///
/// Any number of controllers may run; one leads and the others stand by. Every
/// flag can also be given as VIADUCT_FLAG, for example VIADUCT_DATASTORE. What
/// is logged is set by RUST_LOG (default: info). Exit codes: 0 after a clean stop,
/// 1 after a failure at run time, 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(name = "viaduct-controller", version)]
pub struct Flags {
    /// Which datastore.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Pool to create when the store has none: an IPv4 CIDR, then an IPv6 one if wanted
    /// (pools "default" and "default-v6")
    #[arg(
        long,
        env = "VIADUCT_POOL",
        value_name = "CIDR[,CIDR6]",
        value_delimiter = ',',
        num_args = 1
    )]
    pub pool: Vec<Cidr>,

    /// Prefix length of that pool's blocks, for each CIDR of --pool [default: 26, IPv6 122]
    #[arg(
        long,
        env = "VIADUCT_BLOCK_SIZE",
        value_name = "N[,N6]",
        value_delimiter = ',',
        num_args = 1
    )]
    pub block_size: Vec<u8>,

    /// How long a node that vanished keeps its blocks, such as 90m or 24h
    #[arg(
        long,
        env = "VIADUCT_RECLAIM_AFTER",
        value_name = "TIME",
        default_value = "24h",
        value_parser = duration
    )]
    pub reclaim_after: Duration,

    /// How long a block of a node that is gone rests before another gets it, such as 5m
    #[arg(
        long,
        env = "VIADUCT_QUARANTINE",
        value_name = "TIME",
        default_value = "5m",
        value_parser = duration
    )]
    pub quarantine: Duration,

    /// The datastore was put back from a backup while no controller ran: only listen to the
    /// agents for the time of --quarantine before any block is given or taken
    #[arg(long, env = "VIADUCT_RESTORED")]
    pub restored: bool,

    /// Elect one leader among all controllers of this datastore
    #[arg(
        long,
        env = "VIADUCT_LEADER_ELECT",
        value_name = "true|false",
        default_value_t = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub leader_elect: bool,

    /// Pod CIDRs of Nodes.
    #[command(flatten)]
    pub node_cidrs: NodeCidrsArgs,

    /// Where /healthz, /readyz and /metrics are served; port 0 takes any free one
    #[arg(
        long,
        env = "VIADUCT_HTTP",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9871"
    )]
    pub http: SocketAddr,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "a number with its unit is allowed, such as 30s, 5m, 24h or 7d".into())
}

impl Flags {
    /// Which datastore to open.
    ///
    /// # Errors
    /// When `--datastore` is absent or of a pair of flags one half is.
    pub fn store(&self) -> Result<StoreOptions, Invalid> {
        Ok(StoreOptions {
            writer: Some("viaduct-controller".into()),
            ..self.store.options()?
        })
    }

    /// How the user wants it.
    ///
    /// # Errors
    /// When `--pool` or `--block-size` makes no pool, or `--quarantine` is no rest.
    pub fn policy(&self) -> Result<Policy, Invalid> {
        if self.quarantine < LEAST_QUARANTINE {
            return Err(Invalid::new(
                "flag",
                "--quarantine",
                humantime::format_duration(self.quarantine),
                "1s at least, because a node that is cut off stops handing out addresses after four \
                 fifths of it",
            ));
        }
        Ok(Policy {
            bootstrap: self.bootstrap()?,
            reclaim_after: self.reclaim_after,
            quarantine: self.quarantine,
            listen: if self.restored {
                self.quarantine
            } else {
                LISTEN.min(self.quarantine)
            },
            restored: self.restored,
            refresh: REFRESH,
            node_cidrs: self.node_cidrs.choice(&self.store()?)?,
        })
    }

    fn bootstrap(&self) -> Result<Vec<(PoolName, Pool)>, Invalid> {
        let refuse =
            |field, value: String, allowed: &str| Err(Invalid::new("flag", field, value, allowed));
        if self.pool.len() > 2 {
            let given: Vec<String> = self.pool.iter().map(ToString::to_string).collect();
            return refuse(
                "--pool",
                given.join(","),
                "an IPv4 CIDR, then an IPv6 one if wanted; make further pools with \
                 `viaductctl pools create`",
            );
        }
        if self.block_size.len() > self.pool.len() {
            let given: Vec<String> = self.block_size.iter().map(ToString::to_string).collect();
            return refuse(
                "--block-size",
                given.join(","),
                "one number for each CIDR of --pool at most",
            );
        }
        let places = [("default", Family::V4), ("default-v6", Family::V6)];
        let mut pools = Vec::new();
        for (n, (&cidr, (name, family))) in self.pool.iter().zip(places).enumerate() {
            let cidr = Pool::of_family("flag", "--pool", cidr, family)?;
            let pool = Pool::new(cidr, self.block_size.get(n).copied());
            pool.validate(name).map_err(|refused| Invalid {
                object: "flag".into(),
                field: match refused.field {
                    "blockSize" => "--block-size",
                    _ => "--pool",
                },
                ..refused
            })?;
            pools.push((name.parse()?, pool));
        }
        Ok(pools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn flags(args: &[&str]) -> Flags {
        let base = ["viaduct-controller", "--datastore", "sqlite:/x"];
        Flags::try_parse_from(base.iter().chain(args)).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        Flags::command().debug_assert();
        let flags = flags(&[]);
        assert_eq!(flags.reclaim_after, Duration::from_secs(24 * 3600));
        assert_eq!(flags.quarantine, Duration::from_secs(300));
        assert_eq!(flags.http.to_string(), "127.0.0.1:9871");
        assert!(flags.leader_elect && flags.policy().unwrap().bootstrap.is_empty());
    }

    #[test]
    fn leader_election_can_be_switched_in_every_spelling() {
        assert!(flags(&["--leader-elect"]).leader_elect);
        assert!(flags(&["--leader-elect=true"]).leader_elect);
        assert!(!flags(&["--leader-elect=false"]).leader_elect);
        assert!(!flags(&["--leader-elect", "false"]).leader_elect);
    }

    #[test]
    fn two_families_make_two_pools() {
        let pools = flags(&["--pool", "10.0.0.0/16,fd00::/48", "--block-size", "25,120"])
            .policy()
            .unwrap()
            .bootstrap;
        let shown: Vec<_> = pools
            .iter()
            .map(|(name, pool)| (name.as_str(), pool.cidr.to_string(), pool.block_len()))
            .collect();
        assert_eq!(
            shown,
            [
                ("default", "10.0.0.0/16".to_owned(), 25),
                ("default-v6", "fd00::/48".to_owned(), 120)
            ]
        );
    }

    #[test]
    fn pools_and_times_that_make_no_sense_are_refused_by_flag_and_value() {
        for (args, flag, hint) in [
            (&["--pool", "fd00::/48"][..], "--pool", "IPv4"),
            (&["--pool", "10.0.0.0/16,10.1.0.0/16"], "--pool", "IPv6"),
            (&["--pool", "127.0.0.0/16"], "--pool", "loopback"),
            (
                &["--pool", "10.0.0.0/24", "--block-size", "16"],
                "--block-size",
                "24 to 32",
            ),
            (
                &["--pool", "10.0.0.0/24", "--block-size", "33"],
                "--block-size",
                "24 to 32",
            ),
            (&["--block-size", "26"], "--block-size", "--pool"),
            (&["--quarantine", "0s"], "--quarantine", "1s at least"),
            (&["--quarantine", "900ms"], "--quarantine", "900ms"),
            (
                &["--pool", "10.0.0.0/16,fd00::/48,fd01::/48"],
                "--pool",
                "viaductctl",
            ),
        ] {
            let error = flags(args).policy().unwrap_err();
            assert_eq!(error.field, flag, "{args:?}");
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn what_clap_refuses_names_flag_value_and_what_is_allowed() {
        for (args, parts) in [
            (["--quarantine", "soon"], ["--quarantine", "soon", "5m"]),
            (
                ["--pool", "10.0.0.1"],
                ["--pool", "10.0.0.1", "10.64.0.0/16"],
            ),
        ] {
            let error = Flags::try_parse_from(["c"].iter().chain(&args)).unwrap_err();
            let line = viaduct_datastore::flags::one_line(&error);
            for part in parts {
                assert!(line.contains(part), "{line}");
            }
        }
    }
}
