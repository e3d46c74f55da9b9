//! A node that grows: blocks are asked for ahead, and a burst of pods gets its addresses
//! without one that has to try again; what is empty and not needed goes back.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use viaduct_e2e::{Raw, eventually};
use viaduct_lab::{Datastore, LabOptions, Node, in_lab, in_parallel, netns};
use viaduct_model::Kind;

/// One node, with blocks of 16 addresses, that soon gives back what it can spare.
fn small_blocks() -> LabOptions {
    LabOptions {
        nodes: 1,
        pods: 0,
        datastore: Datastore::Etcd,
        pool: Some("10.64.0.0/21".to_owned()),
        controller_args: ["--block-size", "28"].map(str::to_owned).to_vec(),
        agent_args: ["--give-back-after", "3s"].map(str::to_owned).to_vec(),
        ..LabOptions::default()
    }
}

/// Waits until the store holds so many blocks; in vain, it says how everything stands.
fn wait_for_blocks(store: &Raw, wanted: RangeInclusive<usize>) -> Result<()> {
    eventually(|| {
        let blocks = store.all(Kind::Block)?;
        if wanted.contains(&blocks.len()) {
            return Ok(());
        }
        let mut told = format!("{} blocks, not {wanted:?}", blocks.len());
        for kind in [Kind::Block, Kind::Claim, Kind::Pool] {
            for (name, record) in store.all(kind)? {
                told += &format!("\n{kind} {name}: {record}");
            }
        }
        bail!(told)
    })
}

/// An ADD, how long it took, and what address it gave.
fn add(node: &Node, name: &str) -> Result<(Duration, String)> {
    let netns = netns::add(name)?;
    let begun = Instant::now();
    let outcome = node.cni("ADD", name, &netns)?;
    let took = begun.elapsed();
    // No runtime tries again here: code 11 is a failure like any other.
    let address = outcome.check("ADD")?.address()?;
    Ok((took, address.to_string()))
}

fn del(node: &Node, name: &str) -> Result<()> {
    node.cni("DEL", name, &netns::path(name))?.check("DEL")?;
    netns::remove(name)
}

#[test]
fn a_burst_of_pods_on_small_blocks_gets_its_addresses_without_trying_again() {
    in_lab(small_blocks(), |lab| {
        let node = lab.node("n1")?;
        let store = Raw::open(lab)?;
        let names: Vec<String> = (0..110).map(|n| format!("p{n}")).collect();
        // 15 of the first block's addresses are to be had; a quarter of them, and the next
        // block is there before they are gone.
        let (first, rest) = names.split_at(13);
        let mut given = BTreeSet::new();
        for name in first {
            given.insert(add(&node, name)?.1);
        }
        wait_for_blocks(&store, 2..=2).context("the next block is asked for at the watermark")?;

        let added = in_parallel(rest.len(), rest, |name| add(&node, name));
        let mut times = Vec::new();
        for outcome in added {
            let (took, address) = outcome?;
            times.push(took);
            given.insert(address);
        }
        ensure!(given.len() == 110, "{} addresses for 110 pods", given.len());
        times.sort();
        let median = times.get(times.len() / 2);
        println!(
            "{} at once: median {median:?}, longest {:?}",
            times.len(),
            times.last()
        );
        // 111 addresses with the node's own, and a watermark of 16.
        wait_for_blocks(&store, 8..=9).context("as many blocks as the pods need")?;

        for outcome in in_parallel(32, &names, |name| del(&node, name)) {
            outcome?;
        }
        // The one with the node's own address, and what is twice the watermark of it.
        wait_for_blocks(&store, 1..=3).context("empty blocks that are not needed go back")?;
        add(&node, "after").map(drop)
    });
}
