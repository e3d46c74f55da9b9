//! Pod CIDRs of Nodes: adopted as blocks, or published.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::WEB;
use super::permissions::elsewhere;
use super::rollout::{self, AGENTS, CONTROLLERS};
use crate::cluster::{Cluster, NODES};
use crate::{pods, wait};

/// The block of a Node, as the API has it.
fn pod_cidrs(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let found = cluster.get(&["node", node])?;
    let list = found["spec"]["podCIDRs"].as_array().cloned();
    Ok(list
        .unwrap_or_default()
        .iter()
        .filter_map(|cidr| cidr.as_str().map(str::to_owned))
        .collect())
}

/// All blocks.
pub(super) fn blocks(cluster: &Cluster) -> Result<Vec<Value>> {
    let listed = cluster.get(&["addressblocks"])?;
    Ok(listed["items"].as_array().context("no blocks")?.clone())
}

/// First address and length, so that the lower block sorts first.
fn place(cidr: &str) -> Result<(Ipv4Addr, u8)> {
    let (address, length) = cidr.split_once('/').context("no CIDR")?;
    Ok((address.parse()?, length.parse()?))
}

fn holds(cidr: &str, ip: &str) -> Result<bool> {
    let (first, length) = place(cidr)?;
    let ip: Ipv4Addr = ip.parse()?;
    let host_bits = u32::from(32 - length);
    Ok(u32::from(first).checked_shr(host_bits) == u32::from(ip).checked_shr(host_bits))
}

pub(super) fn adopted(cluster: &Cluster) -> Result<String> {
    let web = pods::all_ready(cluster, "web", WEB)?;
    let blocks = blocks(cluster)?;
    ensure!(blocks.len() == NODES.len(), "{} blocks", blocks.len());
    let mut said = Vec::new();
    for node in NODES {
        let cidrs = pod_cidrs(cluster, node)?;
        let [cidr] = &cidrs[..] else {
            anyhow::bail!("{node} has the pod CIDRs {cidrs:?}");
        };
        let block = blocks
            .iter()
            .find(|block| block["spec"]["cidr"] == cidr.as_str())
            .with_context(|| format!("no block {cidr} of {node}"))?;
        ensure!(block["spec"]["node"] == node, "{block}");
        let owner = &block["metadata"]["ownerReferences"][0];
        ensure!(owner["kind"] == "Node" && owner["name"] == node, "{block}");
        for pod in web.iter().filter(|pod| pod.node == node) {
            ensure!(
                holds(cidr, &pod.ip)?,
                "{} has {} outside of {cidr}",
                pod.name,
                pod.ip
            );
        }
        said.push(format!("{node} {cidr}"));
    }
    Ok(said.join(", "))
}

pub(super) fn published(cluster: &Cluster) -> Result<String> {
    if elsewhere() {
        return Ok("the records are not in the Kubernetes API".into());
    }
    for node in NODES {
        let there = pod_cidrs(cluster, node)?;
        ensure!(there.is_empty(), "{node} has {there:?} already");
    }
    let web = pods::all_ready(cluster, "web", WEB)?;
    let streams = rollout::streams(cluster, &web)?;
    cluster.apply_kustomization("tests/kube/manifests/viaduct-publish")?;
    rollout::rolled_out(cluster, CONTROLLERS)?;
    rollout::rolled_out(cluster, AGENTS)?;
    wait::until(Duration::from_secs(60), || {
        let mut first: BTreeMap<String, (Ipv4Addr, u8)> = BTreeMap::new();
        for block in blocks(cluster)? {
            let spec = &block["spec"];
            let cidr = place(spec["cidr"].as_str().context("no cidr")?)?;
            let node = spec["node"].as_str().context("no node")?;
            let lowest = first.entry(node.to_owned()).or_insert(cidr);
            *lowest = cidr.min(*lowest);
        }
        for node in NODES {
            let there = pod_cidrs(cluster, node)?;
            let (address, length) = first.get(node).context("a node without a block")?;
            ensure!(
                there == [format!("{address}/{length}")],
                "{node} has {there:?}, its first block is {address}/{length}"
            );
        }
        Ok(())
    })?;
    let packets = rollout::lost_none(streams)?;
    Ok(format!("{packets} packets"))
}
