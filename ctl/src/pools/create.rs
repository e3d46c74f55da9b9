//! `viaductctl pools create`: checks a pool against everything that is there, and
//! creates it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use viaduct_datastore::{Named, Records};
use viaduct_model::{Cidr, Invalid, Node, Pool, PoolName, Record};

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The pool's name
    name: PoolName,
    /// The range of addresses, such as 10.64.0.0/16 or fd00:64::/48
    #[arg(long, value_name = "CIDR")]
    cidr: Cidr,
    /// The prefix length of a block; 26 for IPv4, 122 for IPv6 when absent
    #[arg(long, value_name = "LENGTH")]
    block_size: Option<u8>,
    /// A range that is never handed out; may be given several times
    #[arg(long, value_name = "CIDR")]
    reserved: Vec<Cidr>,
    /// A label that nodes must carry to be given blocks; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    node_selector: Vec<(String, String)>,
    /// Do not masquerade what leaves the cluster from this pool
    #[arg(long)]
    no_nat_outgoing: bool,
    /// Carve no blocks from it yet
    #[arg(long)]
    disabled: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written KEY=VALUE".to_owned()),
    }
}

impl CreateArgs {
    fn pool(&self) -> Pool {
        Pool {
            node_selector: BTreeMap::from_iter(self.node_selector.iter().cloned()),
            nat_outgoing: !self.no_nat_outgoing,
            disabled: self.disabled,
            reserved: self.reserved.clone(),
            ..Pool::new(self.cidr, self.block_size)
        }
    }
}

/// Refuses a pool that cannot live beside the others and the nodes' underlays.
fn check(
    name: &PoolName,
    pool: &Pool,
    others: &[(PoolName, Pool)],
    nodes: &[Named<Node>],
) -> Result<(), Invalid> {
    pool.validate(name.as_str())?;
    pool.disjoint_from(name, others.iter().map(|(name, pool)| (name, pool)))?;
    for node in nodes {
        for network in &node.record.underlay_networks {
            if network.overlaps(&pool.cidr) {
                return Err(Invalid::new(
                    format!("pool {:?}", name.as_str()),
                    "cidr",
                    pool.cidr,
                    format!(
                        "it overlaps the underlay network {network} of node {:?}; pods and nodes \
                         must not share addresses",
                        node.name
                    ),
                ));
            }
        }
    }
    Ok(())
}

async fn pools(records: &Records) -> Result<Vec<(PoolName, Pool)>> {
    let (pools, unreadable) = records.list::<Pool>().await?;
    if let Some(invalid) = unreadable.first() {
        bail!("a pool cannot be read, so that overlaps cannot be told: {invalid}");
    }
    pools
        .into_iter()
        .map(|pool| Ok((pool.name.parse()?, pool.record)))
        .collect()
}

/// Creates the pool. A store has no transaction over several records, so it is
/// checked again afterwards and withdrawn if an overlapping one was created at the
/// same time; of two that race, both may be refused, and never do both stay.
pub(crate) async fn run(records: &Records, args: &CreateArgs) -> Result<String> {
    let (name, pool) = (&args.name, args.pool());
    pool.validate(name.as_str())?;
    let (nodes, _) = records.list::<Node>().await?;
    check(name, &pool, &pools(records).await?, &nodes)?;
    let version = records.create(name.as_str(), &pool, None).await?;
    if let Err(lost) = check(name, &pool, &pools(records).await?, &[]) {
        records
            .delete::<Pool>(name.as_str(), &version)
            .await
            .with_context(|| {
                format!("withdrawing pool {name}, which overlaps one created meanwhile")
            })?;
        bail!("{lost}; it was created at the same time, so this one was withdrawn");
    }
    Ok(format!("pool {name} created\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        create: CreateArgs,
    }

    fn parse(args: &[&str]) -> Result<CreateArgs, clap::Error> {
        Flags::try_parse_from([&["create"], args].concat()).map(|flags| flags.create)
    }

    #[test]
    fn flags_become_a_pool() {
        let args = parse(&[
            "blue",
            "--cidr",
            "10.9.0.0/16",
            "--block-size",
            "24",
            "--reserved",
            "10.9.0.0/28",
            "--node-selector",
            "zone=a",
            "--disabled",
            "--no-nat-outgoing",
        ])
        .unwrap();
        let pool = args.pool();
        assert_eq!(
            serde_json::to_string(&pool).unwrap(),
            r#"{"cidr":"10.9.0.0/16","blockSize":24,"nodeSelector":{"zone":"a"},"natOutgoing":false,"disabled":true,"reserved":["10.9.0.0/28"]}"#
        );
    }

    #[test]
    fn wrong_flags_are_refused_by_name() {
        for (args, flag) in [
            (vec!["Blue", "--cidr", "10.9.0.0/16"], "name"),
            (vec!["b", "--cidr", "10.9.0.0"], "--cidr"),
            (
                vec!["b", "--cidr", "10.9.0.0/16", "--reserved", "x"],
                "--reserved",
            ),
            (
                vec!["b", "--cidr", "10.9.0.0/16", "--node-selector", "x"],
                "--node-selector",
            ),
            (vec!["b"], "--cidr"),
        ] {
            let error = parse(&args).unwrap_err().to_string();
            assert!(error.to_lowercase().contains(flag), "{error}");
        }
    }

    #[test]
    fn pools_and_underlays_must_not_overlap() {
        let name: PoolName = "blue".parse().unwrap();
        let pool = Pool::new("10.9.0.0/16".parse().unwrap(), None);
        let other = (
            "red".parse().unwrap(),
            Pool::new("10.0.0.0/8".parse().unwrap(), None),
        );
        let error = check(&name, &pool, &[other], &[]).unwrap_err().to_string();
        assert!(error.contains("blue") && error.contains("red"), "{error}");
        let node = crate::fixture::node("n1", "10.9.1.1", "10.9.1.0/24");
        let error = check(&name, &pool, &[], &[node]).unwrap_err().to_string();
        assert!(
            error.contains("10.9.1.0/24") && error.contains("n1"),
            "{error}"
        );
        assert!(check(&name, &pool, &[], &[]).is_ok());
    }
}
