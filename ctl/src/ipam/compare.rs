//! The comparison behind `viaductctl ipam check`: what store, ledgers, kernels and pods say
//! about who has which address, and where they contradict each other. Pure: it is handed
//! facts and returns findings, and decides nothing about how they are shown.

mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use viaduct_agent::inventory::{Inventory, Recorded};
use viaduct_datastore::PodRef;
use viaduct_model::{AttachmentId, Block, BlockState, Cidr, Kind, NodeName};

use super::store_rules;
use crate::snapshot::Snapshot;

/// All that is compared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// What the store holds.
    pub(crate) snapshot: Snapshot,
    /// What each node holds, or why that could not be read.
    pub(crate) nodes: BTreeMap<String, Result<Inventory, String>>,
    /// The pods, where the cluster knows them by itself.
    pub(crate) pods: Option<Vec<PodRef>>,
}

/// What kind of contradiction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sort {
    /// Addresses that two have.
    Duplicate,
    /// Addresses that are taken for somebody who is no more.
    Leak,
    /// Objects of ours in a kernel, or records, that belong to nobody.
    Orphan,
    /// Addresses of this network where they do not belong.
    Stranger,
    /// A node that was not looked at, so that nothing can be said of it.
    Unseen,
}

/// What puts a finding right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Repair {
    /// A command line on a node.
    On(String, String),
    /// A command line wherever `viaductctl` runs.
    Here(String),
    /// A record of the store is to be deleted.
    Record(Kind, String),
}

/// One contradiction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its kind.
    pub(crate) sort: Sort,
    /// What it is about: together with `sort` the same finding at another look.
    pub(crate) subject: String,
    /// A sentence.
    pub(crate) text: String,
    /// What puts it right.
    pub(crate) repair: Vec<Repair>,
}

/// Who has an address, by ledger and kernel of a node.
#[derive(Debug, Clone, Copy)]
struct Holder<'a> {
    node: &'a str,
    inventory: &'a Inventory,
    recorded: &'a Recorded,
}

impl Holder<'_> {
    fn name(&self) -> String {
        format!("{} on node {}", described(self.recorded), self.node)
    }

    /// Takes it away: by proof where nobody is there any more, else as DEL does.
    fn release(&self, address: IpAddr) -> Repair {
        let link = &self.recorded.endpoint.link;
        let gone = !self.inventory.has_link(link) && !self.recorded.namespace_seen;
        release(self.node, &self.recorded.endpoint.id, address, !gone)
    }
}

fn release(node: &str, id: &AttachmentId, address: IpAddr, detach: bool) -> Repair {
    let AttachmentId {
        container_id,
        ifname,
    } = id;
    let detach = if detach { " --detach" } else { "" };
    Repair::On(
        node.to_owned(),
        format!(
            "viaductctl ipam release {address} --container {container_id} --ifname {}{detach} --yes",
            quoted(ifname)
        ),
    )
}

/// A word of a command line. Interface names may hold what a shell would take for its own.
pub(super) fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+@=,/".contains(&b);
    if word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn described(recorded: &Recorded) -> String {
    let id = &recorded.endpoint.id;
    match &recorded.endpoint.pod {
        Some(pod) => format!("{id} (pod {pod})"),
        None => id.to_string(),
    }
}

/// All contradictions, the worst kind first.
pub(crate) fn compare(facts: &Facts) -> Vec<Finding> {
    let mut findings = store_rules::findings(facts);
    let holders = holders(facts);
    findings.extend(duplicates(facts, &holders));
    for (node, inventory) in seen(facts) {
        findings.extend(of_ledger(facts, node, inventory, &holders));
        findings.extend(of_kernel(node, inventory));
        findings.extend(foreign_routes(facts, node, inventory));
    }
    findings.extend(pods::of_pods(facts, &holders));
    findings.extend(unseen(facts));
    findings.sort_by(|a, b| (a.sort, &a.subject).cmp(&(b.sort, &b.subject)));
    findings.dedup_by(|a, b| (a.sort, &a.subject) == (b.sort, &b.subject));
    findings
}

/// The findings of `now` that were there at an earlier look too: what comes and goes is
/// an ADD or a DEL under way.
pub(crate) fn lasting(before: &[Finding], now: Vec<Finding>) -> Vec<Finding> {
    let stood: BTreeSet<(Sort, &str)> = before
        .iter()
        .map(|finding| (finding.sort, finding.subject.as_str()))
        .collect();
    now.into_iter()
        .filter(|finding| stood.contains(&(finding.sort, finding.subject.as_str())))
        .collect()
}

fn seen(facts: &Facts) -> impl Iterator<Item = (&str, &Inventory)> {
    facts
        .nodes
        .iter()
        .filter_map(|(node, inventory)| Some((node.as_str(), inventory.as_ref().ok()?)))
}

fn holders(facts: &Facts) -> BTreeMap<IpAddr, Vec<Holder<'_>>> {
    let mut holders: BTreeMap<IpAddr, Vec<Holder<'_>>> = BTreeMap::new();
    for (node, inventory) in seen(facts) {
        for recorded in &inventory.attachments {
            for address in &recorded.endpoint.addresses {
                holders.entry(*address).or_default().push(Holder {
                    node,
                    inventory,
                    recorded,
                });
            }
        }
    }
    holders
}

/// The block that an address is in.
fn block_of(facts: &Facts, address: IpAddr) -> Option<&Block> {
    let blocks = facts.snapshot.blocks.iter().map(|named| &named.record);
    blocks
        .filter(|block| block.cidr.contains(address))
        .max_by_key(|block| (block.cidr.prefix_len(), block.generation))
}

fn duplicates(facts: &Facts, holders: &BTreeMap<IpAddr, Vec<Holder<'_>>>) -> Vec<Finding> {
    let shared = holders.iter().filter(|(_, holders)| holders.len() > 1);
    shared
        .map(|(address, holders)| {
            let owner = block_of(facts, *address).map(|block| block.node.as_str());
            // Who keeps it: on the owner's node, with the kernel's route, the longest.
            let claim = |holder: &&Holder<'_>| {
                let link = &holder.recorded.endpoint.link;
                let routed = holder
                    .inventory
                    .routes_to(*address)
                    .any(|route| route.link.as_ref() == Some(link));
                (
                    Some(holder.node) != owner,
                    !routed,
                    holder.recorded.endpoint.allocated_at,
                    link.clone(),
                )
            };
            let keeps = holders.iter().min_by_key(claim);
            let keeps = keeps.map(|holder| (holder.node, &holder.recorded.endpoint.link));
            let others = holders
                .iter()
                .filter(|holder| Some((holder.node, &holder.recorded.endpoint.link)) != keeps);
            let names: Vec<String> = holders.iter().map(Holder::name).collect();
            Finding {
                sort: Sort::Duplicate,
                subject: address.to_string(),
                text: format!(
                    "address {address} has {} owners: {}",
                    names.len(),
                    names.join("; ")
                ),
                repair: others.map(|holder| holder.release(*address)).collect(),
            }
        })
        .collect()
}

fn of_ledger(
    facts: &Facts,
    node: &str,
    inventory: &Inventory,
    holders: &BTreeMap<IpAddr, Vec<Holder<'_>>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for recorded in &inventory.attachments {
        let endpoint = &recorded.endpoint;
        let holder = Holder {
            node,
            inventory,
            recorded,
        };
        // The next agent does it.
        let pending = !inventory.agent_runs && inventory.spooled.contains(&endpoint.link);
        if !inventory.has_link(&endpoint.link) && !pending {
            let addresses: Vec<String> = endpoint.addresses.iter().map(IpAddr::to_string).collect();
            findings.push(Finding {
                sort: Sort::Leak,
                subject: format!("{node}/{}", endpoint.link),
                text: format!(
                    "address {} of {} is taken, and its device {} is gone",
                    addresses.join(", "),
                    holder.name(),
                    endpoint.link
                ),
                repair: endpoint
                    .addresses
                    .first()
                    .map(|address| holder.release(*address))
                    .into_iter()
                    .collect(),
            });
        }
        for address in &endpoint.addresses {
            // Told as a duplicate already.
            if holders
                .get(address)
                .is_some_and(|holders| holders.len() > 1)
            {
                continue;
            }
            let block = block_of(facts, *address);
            let whose = match block {
                Some(block) if block.node.as_str() == node => continue,
                Some(block) => format!("block {} of node {}", block.cidr, block.node),
                None => "no block at all".to_owned(),
            };
            findings.push(Finding {
                sort: Sort::Stranger,
                subject: format!("{node}/{address}"),
                text: format!("address {address} of {} is in {whose}", holder.name()),
                repair: vec![holder.release(*address)],
            });
        }
    }
    for (name, why) in &inventory.damaged {
        let file = inventory
            .run_dir
            .join("endpoints")
            .join(format!("{name}.json"));
        let (state, command) = if inventory.has_link(name) {
            // Its addresses stay taken until the pod is deleted; the device goes with it.
            (
                "its device is there",
                format!("ip link delete dev {}", quoted(name)),
            )
        } else {
            (
                "there is no device of that name",
                format!("rm {}", quoted(&file.display().to_string())),
            )
        };
        findings.push(Finding {
            sort: Sort::Orphan,
            subject: format!("{node}/{name}.json"),
            text: format!("the record {name} on node {node} cannot be read ({why}); {state}"),
            repair: vec![Repair::On(node.to_owned(), command)],
        });
    }
    findings
}

fn of_kernel(node: &str, inventory: &Inventory) -> Vec<Finding> {
    let known =
        |link: &str| inventory.record(link).is_some() || inventory.damaged.contains_key(link);
    let links = inventory.links.iter().filter(|link| !known(link));
    let mut findings: Vec<Finding> = links
        .map(|link| Finding {
            sort: Sort::Orphan,
            subject: format!("{node}/{link}"),
            text: format!("device {link} on node {node} belongs to no attachment"),
            repair: vec![Repair::On(
                node.to_owned(),
                format!("ip link delete dev {}", quoted(link)),
            )],
        })
        .collect();
    for route in &inventory.routes {
        let Some(link) = &route.link else { continue };
        // The route goes with its device, where that is an orphan itself.
        let Some(recorded) = inventory.record(link) else {
            continue;
        };
        let theirs = recorded.endpoint.addresses.iter();
        if theirs
            .map(|a| Cidr::host(*a))
            .any(|host| host == route.destination)
        {
            continue;
        }
        findings.push(Finding {
            sort: Sort::Orphan,
            subject: format!("{node}/{}/{link}", route.destination),
            text: format!(
                "the route to {} by device {link} on node {node} is of no attachment: {} has not \
                 that address",
                route.destination,
                described(recorded)
            ),
            repair: vec![Repair::On(
                node.to_owned(),
                format!(
                    "ip route delete {} dev {} proto 87",
                    route.destination,
                    quoted(link)
                ),
            )],
        });
    }
    findings
}

/// Routes that others made into our blocks: traffic goes where we did not send it.
fn foreign_routes(facts: &Facts, node: &str, inventory: &Inventory) -> Vec<Finding> {
    let blocks: BTreeSet<Cidr> = facts
        .snapshot
        .blocks
        .iter()
        .map(|b| b.record.cidr)
        .collect();
    inventory
        .foreign
        .iter()
        .filter_map(|route| {
            let block = blocks.range(..=route.destination).next_back()?;
            block.covers(&route.destination).then_some((route, block))
        })
        .map(|(route, block)| {
            let device = match &route.link {
                Some(link) => format!(" dev {}", quoted(link)),
                None => String::new(),
            };
            Finding {
                sort: Sort::Stranger,
                subject: format!("{node}/{}{device}", route.destination),
                text: format!(
                    "the route to {}{device} on node {node} leads into block {block} and is not \
                     Viaduct's",
                    route.destination
                ),
                repair: vec![Repair::On(
                    node.to_owned(),
                    format!("ip route delete {}{device}", route.destination),
                )],
            }
        })
        .collect()
}

fn unseen(facts: &Facts) -> Vec<Finding> {
    let unseen = facts
        .nodes
        .iter()
        .filter_map(|(node, inventory)| Some((node, inventory.as_ref().err()?)));
    unseen
        .map(|(node, why)| Finding {
            sort: Sort::Unseen,
            subject: node.clone(),
            text: format!("node {node} was not looked at: {why}"),
            repair: Vec::new(),
        })
        .collect()
}

/// Whether the block is anybody's to hand out from, now or again.
pub(super) fn lives(block: &Block) -> bool {
    block.state != BlockState::Quarantined
}

/// Every node that the store names.
pub(crate) fn node_names(snapshot: &Snapshot) -> BTreeSet<String> {
    let owners = snapshot
        .blocks
        .iter()
        .filter(|block| lives(&block.record))
        .map(|block| NodeName::to_string(&block.record.node));
    let nodes = snapshot.nodes.iter().map(|node| node.name.clone());
    let claims = snapshot.claims.iter().map(|claim| claim.name.clone());
    nodes.chain(claims).chain(owners).collect()
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
