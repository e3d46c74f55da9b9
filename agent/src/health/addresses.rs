//! How addresses of this node's blocks are used, in numbers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::state::AddressUsage;

/// One number of one block.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct BlockLabels {
    block: String,
    state: &'static str,
}

/// Sets the numbers to what they are at `now_ms` of the boot-time clock; blocks that are
/// not the node's any more have none.
pub(super) fn count(numbers: &Family<BlockLabels, Gauge>, usage: &AddressUsage, now_ms: u64) {
    numbers.clear();
    for (cidr, counts) in &usage.blocks {
        let cooling = usage.cooling.get(cidr).into_iter().flatten();
        let cooling = cooling.filter(|until| **until > now_ms).count();
        // An address that was reserved while a pod had it is used, too.
        let taken = u128::from(counts.used) + u128::from(counts.free);
        let reserved = cidr.size().saturating_sub(taken);
        for (state, value) in [
            ("used", i64::from(counts.used)),
            ("free", i64::from(counts.free)),
            ("cooling", i64::try_from(cooling).unwrap_or(i64::MAX)),
            ("reserved", i64::try_from(reserved).unwrap_or(i64::MAX)),
        ] {
            let labels = BlockLabels {
                block: cidr.to_string(),
                state,
            };
            numbers.get_or_create(&labels).set(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use viaduct_model::{AddressManager, AttachmentId, BlockService, Cidr};

    use super::*;

    const BLOCK: &str = "10.64.0.0/28";

    fn told(manager: &AddressManager, at: u64, now_ms: u64) -> Vec<String> {
        let (family, mut registry) = (Family::default(), Registry::default());
        registry.register("addresses", "", family.clone());
        let usage = AddressUsage {
            blocks: manager.usage(),
            cooling: manager.cooling(at),
            ..AddressUsage::default()
        };
        count(&family, &usage, now_ms);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("addresses{block=\"10.64.0.0/28\",state=\""))
            .map(|line| line.replace("\"}", ""))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn each_address_of_a_block_is_used_free_or_reserved_and_the_cooling_ones_warm_up_by_themselves()
    {
        let block: Cidr = BLOCK.parse().unwrap();
        let reserved: IpAddr = "10.64.0.0".parse().unwrap();
        let mut manager = AddressManager::new(Duration::from_secs(30));
        manager.set_reserved([Cidr::host(reserved)].into());
        manager.put_block(block, BlockService::Serving, 0);
        let id = |name| AttachmentId::new(name, "eth0").unwrap();
        for name in ["a", "b", "c"] {
            manager
                .allocate(&id(name), viaduct_model::Family::V4, 0)
                .unwrap();
        }
        assert_eq!(
            told(&manager, 0, 0),
            ["cooling 0", "free 12", "reserved 1", "used 3"]
        );
        manager.release(&id("a"), 1_000);
        manager.release(&id("b"), 5_000);
        let at = 6_000;
        let two = ["cooling 2", "free 14", "reserved 1", "used 1"];
        assert_eq!(told(&manager, at, at), two);
        // Nothing is published when an address has cooled down: whoever asks counts.
        assert_eq!(told(&manager, at, 30_999), two);
        assert_eq!(told(&manager, at, 31_000)[0], "cooling 1");
        assert_eq!(told(&manager, at, 35_000)[0], "cooling 0");
        manager.remove_block(&block, 40_000);
        assert_eq!(told(&manager, 40_000, 40_000), Vec::<String>::new());
    }
}
