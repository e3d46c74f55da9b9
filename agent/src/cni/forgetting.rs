//! Has the kernel forget the connections of addresses that were released: whoever has
//! such an address next must not meet the last one's (a client that calls again from
//! the same port would be taken for the old connection).
//!
//! It runs behind DEL's answer and well within the cool-down. Those that come together
//! are looked for together, since each look walks the kernel's whole table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::sync::mpsc;

use super::metrics::CniMetrics;
use crate::kernel::NetlinkError;
use crate::kernel::conntrack::Conntrack;

/// How long it waits for more.
const TOGETHER: Duration = Duration::from_millis(200);

/// Where released addresses are sent; it never waits.
pub(super) type Forgetting = mpsc::UnboundedSender<IpAddr>;

/// Begins. It ends with the last sender.
pub(super) fn begin(metrics: CniMetrics) -> Forgetting {
    let (released, incoming) = mpsc::unbounded_channel();
    tokio::spawn(run(incoming, metrics));
    released
}

async fn run(mut incoming: mpsc::UnboundedReceiver<IpAddr>, metrics: CniMetrics) {
    let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
    while let Some(first) = incoming.recv().await {
        tokio::time::sleep(TOGETHER).await;
        let mut next = Some(first);
        while let Some(address) = next {
            if let IpAddr::V4(address) = address {
                addresses.insert(address);
            }
            next = incoming.try_recv().ok();
        }
        let batch = std::mem::take(&mut addresses);
        let done = tokio::task::spawn_blocking(move || forget(&batch)).await;
        match done {
            Ok(Ok(count)) => {
                metrics.forgotten.inc_by(count as u64);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the kernel's connections of released addresses cannot be forgotten");
            }
            Err(error) => tracing::error!(%error, "forgetting connections was cut off"),
        }
    }
}

fn forget(addresses: &BTreeSet<Ipv4Addr>) -> Result<usize, NetlinkError> {
    Conntrack::open()?.forget(addresses)
}
