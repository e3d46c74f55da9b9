//! `viaductctl ipam show`: who has an address. The store says whose block it is in, and the
//! agent of that node says the rest.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use viaduct_cni::protocol::{AddressRequest, AddressState, PROTOCOL, Reply};
use viaduct_datastore::Records;
use viaduct_model::{Block, Pool};

use super::{ReachArgs, client, shell};
use crate::output::{self, Format};
use crate::snapshot::Snapshot;

/// What the store says of an address.
struct Place<'a> {
    address: IpAddr,
    pool: Option<(&'a str, &'a Pool)>,
    block: Option<&'a Block>,
}

impl<'a> Place<'a> {
    fn of(snapshot: &'a Snapshot, address: IpAddr) -> Self {
        let blocks = snapshot.blocks.iter().map(|named| &named.record);
        let holds = |cidr: &viaduct_model::Cidr| cidr.contains(address);
        Self {
            address,
            pool: snapshot
                .pools
                .iter()
                .find(|pool| holds(&pool.record.cidr))
                .map(|pool| (pool.name.as_str(), &pool.record)),
            block: blocks
                .filter(|block| holds(&block.cidr))
                .max_by_key(|block| block.cidr.prefix_len()),
        }
    }

    fn reserved(&self) -> bool {
        let ranges = self.pool.map(|(_, pool)| &pool.reserved);
        let mut ranges = ranges.into_iter().flatten();
        ranges.any(|range| range.contains(self.address))
    }
}

/// Says all that is to be found out about an address.
pub(super) async fn run(
    records: &Records,
    format: Format,
    address: IpAddr,
    reach: &ReachArgs,
) -> Result<String> {
    let snapshot = Snapshot::read(records).await?;
    let place = Place::of(&snapshot, address);
    let told = match place.block {
        Some(block) => Some(ask(block.node.as_str(), address, reach).await),
        None => None,
    };
    if format == Format::Json {
        return Ok(output::json(&as_json(&place, told.as_ref())));
    }
    Ok(render(&place, told.as_ref(), SystemTime::now()))
}

/// Asks the agent of a node.
async fn ask(node: &str, address: IpAddr, reach: &ReachArgs) -> Result<AddressState, String> {
    // Here first, which needs no way there.
    let request = AddressRequest {
        protocol: PROTOCOL,
        address,
    };
    let here = match client::ask(reach.here.run_dir(), &request) {
        Ok(Reply::Address(state)) if state.node.as_deref() == Some(node) => return Ok(state),
        Ok(_) => "it is not this host".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    // The other agent is asked on its own host; that it has a store is not needed.
    let Some(line) = reach.on(node, &format!("viaductctl ipam report --address {address}")) else {
        return Err(if reach.own_name().as_deref() == Some(node) {
            here
        } else {
            "--reach does not say how to run a command there".to_owned()
        });
    };
    let text = shell(&line).await?;
    serde_json::from_str(&text).map_err(|e| format!("its answer cannot be read: {e}"))
}

/// What this host's agent knows, for `show` on another host.
pub(super) fn here(address: IpAddr, run_dir: &std::path::Path) -> Result<AddressState> {
    let request = AddressRequest {
        protocol: PROTOCOL,
        address,
    };
    match client::ask(run_dir, &request)? {
        Reply::Address(state) => Ok(state),
        _ => None.context("the agent answered something else than it was asked"),
    }
}

fn render(
    place: &Place<'_>,
    told: Option<&Result<AddressState, String>>,
    now: SystemTime,
) -> String {
    let mut lines = Vec::new();
    match (place.pool, place.block) {
        (None, _) => lines.push(format!("{} is in no pool.", place.address)),
        (Some((pool, record)), None) => lines.push(format!(
            "{} is in pool {pool} ({}) and in no node's block: nobody has it.",
            place.address, record.cidr
        )),
        (Some((pool, _)), Some(block)) => lines.push(format!(
            "{} is in pool {pool}, block {} ({}) of node {}.",
            place.address, block.cidr, block.state, block.node
        )),
    }
    if place.reserved() {
        lines.push("It is reserved in its pool, and never handed out.".to_owned());
    }
    match told {
        Some(Ok(state)) => lines.extend(from_agent(place, state, now)),
        Some(Err(why)) => {
            let node = place.block.map_or("?", |block| block.node.as_str());
            lines.push(format!(
                "What node {node} knows of it cannot be told: {why}"
            ));
        }
        None => {}
    }
    lines.join("\n") + "\n"
}

fn from_agent(place: &Place<'_>, state: &AddressState, now: SystemTime) -> Vec<String> {
    let ago = |ms: u64| {
        let age = Duration::from_millis(ms);
        let at = now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let age = Duration::from_secs(age.as_secs());
        (
            humantime::format_rfc3339_seconds(at).to_string(),
            humantime::format_duration(age).to_string(),
        )
    };
    let mut lines = Vec::new();
    for holder in &state.holders {
        let (at, age) = ago(holder.for_ms);
        let pod = holder
            .pod
            .as_ref()
            .map(|pod| format!(" (pod {pod})"))
            .unwrap_or_default();
        let wired = if holder.wired {
            ""
        } else {
            "; it is not wired: an ADD or DEL is under way, or was cut off"
        };
        lines.push(format!(
            "{}{pod} of network {} has it since {at} (for {age}), device {}{wired}.",
            holder.id, holder.network, holder.link
        ));
    }
    if !state.holders.is_empty() {
        return lines;
    }
    match state.rested_ms {
        Some(rested) => {
            let (at, age) = ago(rested);
            lines.push(format!(
                "Nobody has it. It was last used until {at} ({age} ago)."
            ));
            lines.push(if state.cools_ms > 0 {
                let until = now + Duration::from_millis(state.cools_ms);
                let until = humantime::format_rfc3339_seconds(until);
                format!(
                    "It cools down until {until} (for {} s more).",
                    state.cools_ms.div_ceil(1000)
                )
            } else {
                "It has cooled down.".to_owned()
            });
        }
        None if state.reserved && !place.reserved() => {
            lines.push("It is the node's own, and never handed out to a pod.".to_owned());
        }
        None => lines.push(
            "Nobody has it, and nobody has given it back since that node's agent started."
                .to_owned(),
        ),
    }
    lines
}

fn as_json(place: &Place<'_>, told: Option<&Result<AddressState, String>>) -> Value {
    json!({
        "address": place.address.to_string(),
        "pool": place.pool.map(|(name, _)| name),
        "block": place.block.map(|block| block.cidr.to_string()),
        "blockState": place.block.map(|block| block.state.to_string()),
        "node": place.block.map(|block| block.node.to_string()),
        "reserved": place.reserved(),
        "agent": told.and_then(|told| told.as_ref().ok()),
        "agentUnknown": told.and_then(|told| told.as_ref().err()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_cni::protocol::Holder;
    use viaduct_model::AttachmentId;

    fn state() -> AddressState {
        AddressState {
            address: "10.64.0.5".parse().unwrap(),
            node: Some("n1".into()),
            block: Some("10.64.0.0/26".into()),
            reserved: false,
            holders: Vec::new(),
            rested_ms: None,
            cools_ms: 0,
        }
    }

    fn shown(address: &str, state: Option<AddressState>) -> String {
        let snapshot = crate::fixture::snapshot();
        let place = Place::of(&snapshot, address.parse().unwrap());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        render(&place, state.map(Ok).as_ref(), now)
    }

    #[test]
    fn an_address_has_an_owner_a_rest_or_neither() {
        let id = AttachmentId::new("c1", "eth0").unwrap();
        let held = AddressState {
            holders: vec![Holder {
                link: "via0123456789ab".into(),
                id,
                network: "viaduct".into(),
                pod: Some("shop/web".into()),
                wired: true,
                for_ms: 90_000,
            }],
            ..state()
        };
        insta::assert_snapshot!(shown("10.64.0.5", Some(held)), @r"
        10.64.0.5 is in pool default, block 10.64.0.0/26 (active) of node n1.
        c1/eth0 (pod shop/web) of network viaduct has it since 2027-01-15T07:58:30Z (for 1m 30s), device via0123456789ab.
        ");
        let cooling = AddressState {
            rested_ms: Some(10_000),
            cools_ms: 20_000,
            ..state()
        };
        insta::assert_snapshot!(shown("10.64.0.5", Some(cooling)), @r"
        10.64.0.5 is in pool default, block 10.64.0.0/26 (active) of node n1.
        Nobody has it. It was last used until 2027-01-15T07:59:50Z (10s ago).
        It cools down until 2027-01-15T08:00:20Z (for 20 s more).
        ");
        let own = AddressState {
            reserved: true,
            ..state()
        };
        assert!(shown("10.64.0.0", Some(own)).contains("the node's own"));
        assert!(shown("10.64.0.5", Some(state())).contains("Nobody has it, and"));
        assert_eq!(shown("192.0.2.1", None), "192.0.2.1 is in no pool.\n");
    }
}
