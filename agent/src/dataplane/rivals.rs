//! Routes of others into what this network routes: found and named, never touched.
//!
//! A pure function over lists; called by the cycle. What is somebody else's stays
//! (docs/adr/0022), so that all we can do about a route that takes our traffic is to
//! say so where people look: readiness, metrics, status.

use std::collections::BTreeSet;

use viaduct_model::Cidr;

use super::objects::{Desired, LinkName, Route, is_host_end};

/// The most conflicts that are told one by one.
const TOLD: usize = 20;

/// A route of the main table that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// The route, its link by name.
    pub route: Route,
    /// Who made it, by the kernel's number.
    pub protocol: u8,
    /// Whether the kernel finds it before ours to the same destination.
    pub first: bool,
}

/// The destinations that are this network's: blocks, its own and its peers'. Pods'
/// addresses lie in them.
pub fn territory(desired: &Desired) -> BTreeSet<Cidr> {
    let through_host_end = |link: &LinkName| is_host_end(link);
    desired
        .routes
        .iter()
        .filter(|route| !route.link.as_ref().is_some_and(through_host_end))
        .map(|route| route.destination)
        .collect()
}

/// What stands in the way, one sentence for each foreign route into `territory`.
pub fn conflicts(territory: &BTreeSet<Cidr>, foreign: &[ForeignRoute]) -> Vec<String> {
    let mut told: Vec<String> = foreign
        .iter()
        .filter_map(|rival| {
            let destination = rival.route.destination;
            // Blocks do not overlap: the last that begins before it is the only one.
            let block = territory.range(..=destination).next_back()?;
            block.covers(&destination).then(|| sentence(rival, *block))
        })
        .collect();
    if told.len() > TOLD {
        let more = told.len() - TOLD;
        told.truncate(TOLD);
        told.push(format!("{more} more routes of others conflict"));
    }
    told
}

fn sentence(rival: &ForeignRoute, block: Cidr) -> String {
    let effect = if rival.route.destination != block {
        "takes what goes to that part of it"
    } else if rival.first {
        "takes all that goes there"
    } else {
        "comes after this network's own and is not used"
    };
    format!(
        "{} (protocol {}) conflicts with block {block}: it is not Viaduct's, {effect}, and is left as it is",
        rival.route,
        protocol(rival.protocol)
    )
}

/// The names of `/etc/iproute2/rt_protos` that are met most.
fn protocol(number: u8) -> String {
    match number {
        2 => "kernel".into(),
        3 => "boot".into(),
        4 => "static".into(),
        16 => "dhcp".into(),
        186 => "bgp".into(),
        188 => "ospf".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vxlan::BACKEND;
    use crate::dataplane::testing::Cluster;

    fn foreign(destination: &str, first: bool) -> ForeignRoute {
        ForeignRoute {
            route: Route::through(destination.parse().unwrap(), "eth0".into()),
            protocol: 4,
            first,
        }
    }

    fn found(rivals: &[ForeignRoute]) -> Vec<String> {
        let desired = BACKEND.desired(&Cluster::new().state(), &Default::default());
        conflicts(&territory(&desired), rivals)
    }

    #[test]
    fn routes_into_blocks_are_named_with_what_they_do() {
        let said = found(&[
            foreign("10.64.1.0/26", true),
            foreign("10.64.1.0/26", false),
            foreign("10.64.1.9/32", false),
            foreign("10.64.0.0/26", false),
        ]);
        assert_eq!(said.len(), 4);
        for (sentence, part) in said.iter().zip([
            "takes all that goes there",
            "is not used",
            "route 10.64.1.9/32 dev eth0 (protocol static) conflicts with block 10.64.1.0/26",
            "block 10.64.0.0/26",
        ]) {
            assert!(sentence.contains(part), "{sentence}");
        }
    }

    #[test]
    fn routes_elsewhere_and_around_are_nobodys_business() {
        let quiet = ["0.0.0.0/0", "10.64.0.0/16", "10.64.2.0/26", "10.63.0.0/26"];
        let rivals: Vec<_> = quiet.iter().map(|d| foreign(d, true)).collect();
        assert_eq!(found(&rivals), [""; 0]);
    }

    #[test]
    fn a_table_full_of_conflicts_is_told_in_short() {
        let rivals: Vec<_> = (0..60)
            .map(|n| foreign(&format!("10.64.1.{n}/32"), false))
            .collect();
        let said = found(&rivals);
        assert_eq!(said.len(), 21);
        assert!(said[20].starts_with("40 more"));
    }
}
