//! What is done before the first request: an earlier agent may have been killed at
//! any moment, and pods may have gone since.
//!
//! An address is freed only on the kernel's proof: its link is gone, or was deleted
//! here. What cannot be read frees nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use viaduct_cni::{fault, spool};
use viaduct_model::attachment::LINK_PREFIX;
use viaduct_model::{AttachmentId, Endpoint, MacAddr};

use super::ledger::{self, Ledger, Loaded};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::objects::Route;
use crate::kernel::{NetlinkError, NetlinkKernel, NetlinkSocket, veth};
use crate::memory::Memory;

/// What there is after recovery.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Endpoints by link, stand-ins included.
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    /// Links whose record cannot be read, with the reason.
    pub(super) stand_ins: BTreeMap<String, String>,
    /// Endpoints that are gone; their addresses have to cool down.
    pub(super) released: Vec<Endpoint>,
    /// Records that could not be read.
    pub(super) damaged: usize,
    /// DELs that stay in the spool since they could not be done.
    pub(super) spooled: usize,
}

/// Brings ledger, spool and kernel together.
///
/// # Errors
/// When the kernel or the ledger cannot be read; a single record never stops the
/// others.
pub(super) fn recover(
    run_dir: &Path,
    ledger: &Ledger,
    host: &mut NetlinkSocket,
) -> io::Result<Recovered> {
    let Loaded { endpoints, damaged } = ledger.load()?;
    let links = veth::names(host, LINK_PREFIX).map_err(io::Error::other)?;
    let mut recovered = Recovered {
        endpoints,
        damaged: damaged.len(),
        ..Recovered::default()
    };
    drop_unfinished(&mut recovered, ledger, host, &links);
    keep_damaged(&mut recovered, ledger, host, &links, damaged);
    if let Err(error) = replay(&mut recovered, run_dir, ledger, host) {
        tracing::error!(%error, "the spool cannot be read: DELs in it stay undone");
    }
    Ok(recovered)
}

/// Whether the node's own blocks stand in the kernel as they did for the agent that
/// remembered them. Then the rest of its network does too: nobody has taken it away.
pub(super) fn still_stands(memory: &Memory) -> bool {
    let listed = NetlinkKernel::open()
        .map_err(|error| error.to_string())
        .and_then(|mut kernel| kernel.dump().map_err(|error| error.to_string()));
    match listed {
        Ok(actual) => memory
            .serving
            .iter()
            .all(|block| actual.routes.contains(&Route::blackhole(*block))),
        Err(error) => {
            tracing::warn!(%error, "what was remembered of this node's blocks cannot be compared with the kernel");
            false
        }
    }
}

/// Takes back what was cut off in ADD, and whose pod is gone.
fn drop_unfinished(
    recovered: &mut Recovered,
    ledger: &Ledger,
    host: &mut NetlinkSocket,
    links: &[String],
) {
    let over: Vec<Endpoint> = recovered
        .endpoints
        .values()
        .filter(|e| !e.wired || !links.contains(&e.link))
        .cloned()
        .collect();
    for endpoint in over {
        tracing::info!(
            attachment = %endpoint.id,
            addresses = ?endpoint.addresses,
            "{}",
            if endpoint.wired {
                "the pod's link is gone: its address is freed"
            } else {
                "an ADD that was cut off is undone"
            }
        );
        remove(recovered, ledger, host, &endpoint);
    }
}

fn remove(
    recovered: &mut Recovered,
    ledger: &Ledger,
    host: &mut NetlinkSocket,
    endpoint: &Endpoint,
) -> bool {
    let removed = veth::cut_off(host, &endpoint.link, &endpoint.addresses)
        .and_then(|()| veth::delete(host, &endpoint.link))
        .map_err(io::Error::other)
        .and_then(|()| {
            fault::point("recovery.deleted");
            ledger.remove(&endpoint.link)
        });
    if let Err(error) = removed {
        tracing::error!(attachment = %endpoint.id, %error, "an attachment cannot be removed; its address stays taken");
        return false;
    }
    recovered.endpoints.remove(&endpoint.link);
    recovered.stand_ins.remove(&endpoint.link);
    recovered.released.push(endpoint.clone());
    true
}

/// A damaged record whose link lives belongs to a pod that may well run: what the
/// kernel routes to that link stays taken, and the link is left alone until DEL.
fn keep_damaged(
    recovered: &mut Recovered,
    ledger: &Ledger,
    host: &mut NetlinkSocket,
    links: &[String],
    damaged: BTreeMap<String, String>,
) {
    for (stem, why) in damaged {
        if !links.contains(&stem) {
            let aside = ledger.set_aside(&stem);
            tracing::error!(record = %stem, %why, ?aside, "a record of the ledger cannot be read, and its link is gone");
            continue;
        }
        match stand_in(host, &stem) {
            Ok(endpoint) => {
                tracing::error!(
                    link = %stem,
                    %why,
                    addresses = ?endpoint.addresses,
                    "a record of the ledger cannot be read; its link and addresses are kept until DEL"
                );
                recovered.endpoints.insert(stem.clone(), endpoint);
                recovered.stand_ins.insert(stem, why);
            }
            Err(error) => {
                tracing::error!(link = %stem, %why, %error, "a record of the ledger cannot be read");
            }
        }
    }
}

fn stand_in(host: &mut NetlinkSocket, link: &str) -> Result<Endpoint, NetlinkError> {
    let addresses = veth::addresses_behind(host, link)?;
    let id = AttachmentId {
        // No runtime can name it so: DEL finds it by its link.
        container_id: format!("?{link}"),
        ifname: "?".to_owned(),
    };
    Ok(Endpoint {
        link: link.to_owned(),
        addresses: addresses.into_iter().map(IpAddr::V4).collect(),
        pod_mac: MacAddr([0; 6]),
        ..Endpoint::bare(id)
    })
}

/// Does the DELs that came while no agent ran.
fn replay(
    recovered: &mut Recovered,
    run_dir: &Path,
    ledger: &Ledger,
    host: &mut NetlinkSocket,
) -> io::Result<()> {
    if let Err(error) = spool::remove_unfinished(run_dir) {
        tracing::warn!(%error, "what killed plugins left in the spool stays there");
    }
    for entry in spool::read(run_dir)? {
        let request = match entry.request {
            Ok(request) => request,
            Err(why) => {
                recovered.damaged += 1;
                let aside = ledger::set_aside(&entry.path, &ledger::damaged_directory(run_dir));
                tracing::error!(file = %entry.path.display(), %why, ?aside, "a spooled DEL cannot be read");
                continue;
            }
        };
        let link = request.id.link_name();
        let done = match recovered.endpoints.get(&link).cloned() {
            Some(endpoint) => remove(recovered, ledger, host, &endpoint),
            None => true,
        };
        fault::point("replay.done");
        let taken_out = if done {
            std::fs::remove_file(&entry.path)
        } else {
            Err(io::Error::other("it could not be done"))
        };
        match taken_out {
            Ok(()) => tracing::info!(attachment = %request.id, "a spooled DEL is done"),
            Err(error) => {
                recovered.spooled += 1;
                tracing::error!(attachment = %request.id, %error, "a spooled DEL stays in the spool");
            }
        }
    }
    Ok(())
}
