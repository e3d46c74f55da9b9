//! `viaductctl ipam release`: gives an address back after proof that nobody uses it.
//!
//! The proof is judged here over the inventory, the deed is a DEL: the agent cuts off
//! whatever there should be after all before it frees the address, so that one in use is
//! never handed to another, whatever was proved.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use viaduct_agent::inventory::{self, Inventory};
use viaduct_cni::protocol::{PROTOCOL, Reply, Request, Verb};
use viaduct_cni::wishes::Wishes;
use viaduct_model::AttachmentId;

use super::{ReleaseArgs, client};
use crate::cli::{print, refuse};
use crate::output::{self, Format};

pub(super) fn run(args: &ReleaseArgs, format: Format) -> ExitCode {
    let id = match AttachmentId::new(&args.container, &args.ifname) {
        Ok(id) => id,
        Err(error) => return refuse(&error, 2),
    };
    match release(args, &id) {
        Ok(()) if format == Format::Json => print(
            output::json(&json!({"released": args.address.to_string(), "attachment": id}))
                .as_bytes(),
        ),
        Ok(()) => print(format!("{} is given back; it was {id}'s\n", args.address).as_bytes()),
        Err(error) => refuse(&format!("{} stays taken: {error:#}", args.address), 1),
    }
}

fn release(args: &ReleaseArgs, id: &AttachmentId) -> Result<()> {
    let inventory = inventory::take(args.here.run_dir())?;
    ensure!(
        inventory.agent_runs,
        "no agent runs here; the next one gives back by itself what has no device any more"
    );
    let network = proved(&inventory, id, args.address, args.detach)?;
    ensure!(
        args.yes,
        "nothing speaks against it; confirm with --yes that {id} is to lose it"
    );
    let del = Request {
        protocol: PROTOCOL,
        verb: Verb::Del,
        id: id.clone(),
        network,
        netns: String::new(),
        pod: None,
        wishes: Wishes::default(),
        previous: None,
    };
    match client::ask(args.here.run_dir(), &del)? {
        Reply::Gone => {}
        other => bail!("the agent answered something else than it was asked: {other:?}"),
    }
    let left = inventory::take(args.here.run_dir())?;
    ensure!(
        left.record(&id.link_name()).is_none(),
        "the agent took the request, and its record is there still"
    );
    Ok(())
}

/// Judges whether the address may be taken from `id`; the name of its network.
fn proved(
    inventory: &Inventory,
    id: &AttachmentId,
    address: IpAddr,
    detach: bool,
) -> Result<String> {
    let link = id.link_name();
    let Some(recorded) = inventory.record(&link) else {
        match inventory
            .attachments
            .iter()
            .find(|r| r.endpoint.addresses.contains(&address))
        {
            Some(other) => bail!("it belongs to {}, not to {id}", other.endpoint.id),
            None => bail!("the ledger here knows neither it nor {id}"),
        }
    };
    let endpoint = &recorded.endpoint;
    ensure!(
        endpoint.addresses.contains(&address),
        "{id} has {:?}",
        endpoint.addresses
    );
    if !detach {
        ensure!(
            !inventory.has_link(&link),
            "device {link} of {id} is there, so it is in use; --detach cuts it off first"
        );
        if let Some(route) = inventory.routes_to(address).next() {
            bail!(
                "the kernel routes it to device {}, so it is in use",
                route.link.as_deref().unwrap_or("?")
            );
        }
        ensure!(
            !recorded.namespace_seen,
            "the network namespace {} of {id} is there, so the container may live; delete it, or \
             cut it off with --detach",
            endpoint.netns
        );
    }
    Ok(endpoint.network.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{inventory, recorded};
    use viaduct_agent::inventory::PodRoute;

    fn judged(inventory: &Inventory, container: &str, address: &str, detach: bool) -> String {
        let id = AttachmentId::new(container, "eth0").unwrap();
        match proved(inventory, &id, address.parse().unwrap(), detach) {
            Ok(network) => network,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_what_nobody_uses_is_given_back() {
        let mut here = inventory(&[("c1", "10.64.0.5")]);
        let link = here.links.pop().unwrap();
        here.routes.clear();
        let free = here.clone();
        assert_eq!(judged(&free, "c1", "10.64.0.5", false), "viaduct");
        for (container, address, told) in [
            ("c2", "10.64.0.5", "belongs to c1/eth0"),
            ("c2", "10.64.0.6", "knows neither"),
            ("c1", "10.64.0.6", "c1/eth0 has"),
        ] {
            for detach in [false, true] {
                let why = judged(&free, container, address, detach);
                assert!(why.contains(told), "{why}");
            }
        }
        let mut device = free.clone();
        device.links.push(link.clone());
        let mut route = free.clone();
        route.routes.push(PodRoute {
            destination: "10.64.0.5/32".parse().unwrap(),
            link: Some(link),
        });
        let mut namespace = free;
        namespace.attachments = vec![viaduct_agent::inventory::Recorded {
            namespace_seen: true,
            ..recorded("c1", "10.64.0.5")
        }];
        for (used, told) in [
            (device, "device via"),
            (route, "routes it to device via"),
            (namespace, "network namespace"),
        ] {
            let why = judged(&used, "c1", "10.64.0.5", false);
            assert!(why.contains(told), "{why}");
            assert_eq!(judged(&used, "c1", "10.64.0.5", true), "viaduct");
        }
    }
}
