//! A pool: addresses that blocks are carved from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Extra, Kind, Node, Record};
use crate::{Cidr, Family, Invalid, NodeName, PoolName};

/// A range of pod addresses. The spec is written by the user, the status by the
/// leading controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The range. Immutable, and disjoint from every other pool's.
    pub cidr: Cidr,
    /// The prefix length of a block; 26 for IPv4 and 122 for IPv6 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Labels that a node must carry to be given blocks of this pool.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Whether traffic that leaves the cluster is masqueraded.
    #[serde(default = "yes")]
    pub nat_outgoing: bool,
    /// No new blocks are carved while true; those given stay.
    #[serde(default)]
    pub disabled: bool,
    /// Ranges that are never handed out to a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<Cidr>,
    /// What the leading controller says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PoolStatus>,
    /// Unknown fields, kept.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What the leading controller says of a pool, refreshed at most once a minute
/// unless exhaustion changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Since when (RFC 3339, for people) a node waits for a block that the pool
    /// does not have; absent when no node waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exhausted_since: Option<String>,
    /// How many blocks the pool can hold; saturates.
    pub blocks_total: u64,
    /// How many of them are free; saturates.
    pub blocks_free: u64,
    /// No block that was ever freed had a greater generation: what makes generations
    /// grow although a block's record goes when it is freed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
}

/// How many addresses a block may hold. A node's working set of one block is kept
/// in memory; this is far beyond what one machine runs, and keeps that bounded.
pub(super) const MAX_BLOCK_SIZE: u128 = 1 << 16;

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn yes() -> bool {
    true
}

impl Pool {
    /// A pool with defaults for everything but its range.
    pub fn new(cidr: Cidr, block_size: Option<u8>) -> Self {
        Self {
            cidr,
            block_size: Some(block_size.unwrap_or(Self::default_block_size(cidr.family()))),
            node_selector: BTreeMap::new(),
            nat_outgoing: true,
            disabled: false,
            reserved: Vec::new(),
            status: None,
            extra: Extra::new(),
        }
    }

    /// The prefix length of a block when none is given.
    pub fn default_block_size(family: Family) -> u8 {
        match family {
            Family::V4 => 26,
            Family::V6 => 122,
        }
    }

    /// The prefix length of this pool's blocks.
    pub fn block_len(&self) -> u8 {
        self.block_size
            .unwrap_or(Self::default_block_size(self.cidr.family()))
    }

    /// Refuses a pool that overlaps one that is there; names both.
    ///
    /// # Errors
    /// Names the first pool that `self` overlaps.
    pub fn disjoint_from<'a>(
        &self,
        name: &PoolName,
        others: impl IntoIterator<Item = (&'a PoolName, &'a Pool)>,
    ) -> Result<(), Invalid> {
        for (other_name, other) in others {
            if other_name != name && other.cidr.overlaps(&self.cidr) {
                return Err(Invalid::new(
                    format!("pool {:?}", name.as_str()),
                    "cidr",
                    self.cidr,
                    format!(
                        "it overlaps pool {:?} ({}); pools must not share addresses",
                        other_name.as_str(),
                        other.cidr
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Pool {
    /// Whether a node with these labels may be given blocks of this pool: it
    /// carries every label of the selector.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Refuses a pool that shares addresses with the network that carries a
    /// node's tunnels: routes to pods would take the tunnels' own packets.
    ///
    /// # Errors
    /// Names the node and both prefixes.
    pub fn apart_from_underlay(
        &self,
        name: &PoolName,
        node_name: &NodeName,
        node: &Node,
    ) -> Result<(), Invalid> {
        match node
            .underlay_networks
            .iter()
            .find(|n| n.overlaps(&self.cidr))
        {
            None => Ok(()),
            Some(network) => Err(Invalid::new(
                format!("pool {:?}", name.as_str()),
                "cidr",
                self.cidr,
                format!(
                    "it overlaps {network}, the underlay network of node {:?}; \
                     pods and underlay must not share addresses",
                    node_name.as_str()
                ),
            )),
        }
    }

    /// Refuses a range of the other family than the one that is meant.
    ///
    /// # Errors
    /// Names the field, the range and the family that belongs there.
    pub fn of_family(
        object: impl Into<String>,
        field: &'static str,
        cidr: Cidr,
        family: Family,
    ) -> Result<Cidr, Invalid> {
        if cidr.family() == family {
            return Ok(cidr);
        }
        let example = match family {
            Family::V4 => "10.64.0.0/16",
            Family::V6 => "fd00:64::/48",
        };
        Err(Invalid::new(
            object,
            field,
            cidr,
            format!("an {family} prefix is meant here, such as {example}"),
        ))
    }
}

impl Record for Pool {
    const KIND: Kind = Kind::Pool;

    fn validate(&self, name: &str) -> Result<(), Invalid> {
        let object = || format!("pool {name:?}");
        name.parse::<PoolName>()?;
        let (len, bits) = (self.cidr.prefix_len(), self.cidr.family().bits());
        let size = self.block_len();
        if size < len {
            return Err(Invalid::new(
                object(),
                "blockSize",
                size,
                format!(
                    "a block must fit into the pool {}: {len} to {bits}",
                    self.cidr
                ),
            ));
        }
        if size > bits {
            return Err(Invalid::new(
                object(),
                "blockSize",
                size,
                format!(
                    "the prefix length of an {} block: {len} to {bits}",
                    self.cidr.family()
                ),
            ));
        }
        if 1u128
            .checked_shl(u32::from(bits - size))
            .is_none_or(|n| n > MAX_BLOCK_SIZE)
        {
            return Err(Invalid::new(
                object(),
                "blockSize",
                size,
                format!(
                    "a block holds at most 65536 addresses: {} to {bits}",
                    bits - 16
                ),
            ));
        }
        if !is_unicast(&self.cidr) {
            return Err(Invalid::new(
                object(),
                "cidr",
                self.cidr,
                "a range of unicast addresses that may be routed: not loopback, link-local, \
                 multicast or unspecified",
            ));
        }
        for reserved in &self.reserved {
            if !self.cidr.covers(reserved) {
                return Err(Invalid::new(
                    object(),
                    "reserved",
                    reserved,
                    format!("ranges inside the pool's cidr {}", self.cidr),
                ));
            }
        }
        Ok(())
    }
}

/// Whether none of the ranges that no pod may live in overlaps `cidr`
/// (RFC 6890).
pub(super) fn is_unicast(cidr: &Cidr) -> bool {
    const NOT_FOR_PODS: [&str; 8] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/8",
        "fe80::/10",
        "ff00::/8",
    ];
    NOT_FOR_PODS
        .iter()
        .filter_map(|range| range.parse::<Cidr>().ok())
        .all(|range| !range.overlaps(cidr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, size: Option<u8>) -> Pool {
        Pool {
            block_size: size,
            ..Pool::new(cidr.parse().unwrap(), None)
        }
    }

    fn refused(cidr: &str, size: Option<u8>) -> Invalid {
        pool(cidr, size).validate("p").unwrap_err()
    }

    #[test]
    fn block_sizes_are_checked_against_pool_and_family() {
        assert!(pool("10.0.0.0/16", None).validate("p").is_ok());
        assert!(pool("fd00:64::/48", None).validate("p").is_ok());
        assert!(pool("10.0.0.0/26", Some(26)).validate("p").is_ok());
        assert_eq!(refused("10.0.0.0/24", Some(16)).field, "blockSize");
        assert_eq!(refused("10.0.0.0/24", Some(33)).field, "blockSize");
        assert_eq!(refused("10.0.0.0/8", Some(12)).field, "blockSize");
        assert_eq!(refused("fd00:64::/48", Some(64)).field, "blockSize");
    }

    #[test]
    fn ranges_where_no_pod_can_live_are_refused() {
        for bad in [
            "127.0.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/16",
            "fe80::/16",
            "0.0.0.0/0",
            "ff02::/16",
        ] {
            assert_eq!(refused(bad, None).field, "cidr", "{bad}");
        }
    }

    #[test]
    fn overlapping_pools_are_refused_with_both_named() {
        let (one, two): (PoolName, PoolName) = ("one".parse().unwrap(), "two".parse().unwrap());
        let big = pool("10.0.0.0/8", None);
        let error = pool("10.9.0.0/16", None)
            .disjoint_from(&two, [(&one, &big)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("one") && error.contains("two"), "{error}");
        assert!(big.disjoint_from(&one, [(&one, &big)]).is_ok());
    }

    #[test]
    fn a_pool_inside_the_underlay_is_refused_with_both_prefixes_and_the_node() {
        let node: Node = serde_json::from_str(
            r#"{"incarnation":"i","underlay":{"v4":"10.1.0.5"},"underlayNetworks":["10.1.0.0/24"],
                "backend":{"type":"vxlan","vni":1,"port":8472,"vtepMac":"02:00:5e:00:53:01"},"mtu":1450}"#,
        )
        .unwrap();
        let (name, node_name) = ("p".parse().unwrap(), "n1".parse().unwrap());
        let check = |cidr| pool(cidr, Some(26)).apart_from_underlay(&name, &node_name, &node);
        let error = check("10.1.0.0/16").unwrap_err().to_string();
        for part in ["10.1.0.0/16", "10.1.0.0/24", "n1"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(check("10.1.0.0/26").is_err());
        assert!(check("10.2.0.0/16").is_ok());
    }

    #[test]
    fn selectors_need_every_label() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect()
        };
        let mut pool = pool("10.0.0.0/16", None);
        assert!(pool.selects(&labels(&[])));
        pool.node_selector = labels(&[("zone", "a"), ("disk", "ssd")]);
        assert!(pool.selects(&labels(&[("zone", "a"), ("disk", "ssd"), ("x", "y")])));
        assert!(!pool.selects(&labels(&[("zone", "a")])));
        assert!(!pool.selects(&labels(&[("zone", "b"), ("disk", "ssd")])));
    }

    #[test]
    fn the_other_family_is_refused_where_one_is_meant() {
        let v6 = "fd00::/48".parse().unwrap();
        let error = Pool::of_family("flag", "--pool", v6, Family::V4).unwrap_err();
        assert!(error.to_string().contains("IPv4"), "{error}");
        assert_eq!(Pool::of_family("flag", "--pool", v6, Family::V6), Ok(v6));
    }

    #[test]
    fn unknown_fields_are_kept() {
        let text =
            r#"{"cidr":"10.0.0.0/16","natOutgoing":true,"disabled":false,"colour":{"of":"money"}}"#;
        let pool: Pool = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&pool).unwrap(), text);
    }
}
