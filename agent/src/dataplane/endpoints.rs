//! What the pods of this node need in the kernel, whatever the backend: a pure
//! function from the ledger.

use std::collections::BTreeMap;
use std::net::IpAddr;

use viaduct_model::{Cidr, Endpoint, MacAddr};

use super::objects::{Desired, DesiredLink, LinkKind, LinkName, Route, Settings};
use crate::isolation::Foreign;
use crate::state::Endpoints;

/// The settings of every pod's host end. The source check is strict: the route back
/// to any source must lead through the link that the packet came by, so that a pod
/// can send from no address but its own. It stays so where the host makes it loose
/// (`net.ipv4.conf.all.rp_filter` = 2, and the kernel takes the greater): on a link that
/// has no IPv4 address, as these, the kernel's loose check is the strict one
/// (docs/adr/0052).
pub const HOST_END: Settings = Settings {
    forwarding: true,
    rp_filter: 1,
    proxy_arp: false,
};

/// The settings of a pod that is cut off: nothing that it sends is forwarded.
pub const CUT_OFF: Settings = Settings {
    forwarding: false,
    ..HOST_END
};

/// Adds what the endpoints need to `desired`, where none is cut off.
pub fn desire(endpoints: &Endpoints, desired: &mut Desired) {
    desire_without(endpoints, &BTreeMap::new(), desired);
}

/// Adds what the endpoints need to `desired`. Those of `foreign` keep their link, and no
/// packet goes to them or comes from them.
///
/// An endpoint that is not wired completely is in the hands of the CNI server: its
/// link is left alone.
pub fn desire_without(
    endpoints: &Endpoints,
    foreign: &BTreeMap<String, Foreign>,
    desired: &mut Desired,
) {
    for (name, endpoint) in endpoints.iter() {
        let link: LinkName = name.as_str().into();
        if endpoint.wired {
            desire_one(link, endpoint, foreign.contains_key(name), desired);
        } else {
            desired.left_alone.insert(link);
        }
    }
}

fn desire_one(link: LinkName, endpoint: &Endpoint, cut_off: bool, desired: &mut Desired) {
    desired.links.insert(
        link.clone(),
        DesiredLink {
            kind: LinkKind::Veth,
            mac: Some(MacAddr::HOST_END),
            mtu: endpoint.mtu,
            settings: if cut_off { CUT_OFF } else { HOST_END },
        },
    );
    if cut_off {
        return;
    }
    for address in &endpoint.addresses {
        let IpAddr::V4(v4) = address else { continue };
        let host = Cidr::host(*address);
        desired.routes.insert(Route::through(host, link.clone()));
        desired
            .neighbours
            .insert((link.clone(), *v4), endpoint.pod_mac);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::dataplane::testing::endpoint;

    #[test]
    fn only_wired_endpoints_are_desired_and_the_others_left_alone() {
        let wired = endpoint("a", "10.64.0.5", true);
        let halfway = endpoint("b", "10.64.0.6", false);
        let endpoints: Endpoints = Arc::new(BTreeMap::from([
            (wired.link.clone(), wired.clone()),
            (halfway.link.clone(), halfway.clone()),
        ]));
        let mut desired = Desired::default();
        desire(&endpoints, &mut desired);
        let link: LinkName = wired.link.as_str().into();
        assert_eq!(desired.links.keys().collect::<Vec<_>>(), [&link]);
        assert_eq!(desired.routes.len(), 1);
        assert_eq!(
            desired.neighbours.into_values().collect::<Vec<_>>(),
            [wired.pod_mac]
        );
        assert!(desired.left_alone.contains(halfway.link.as_str()));
    }

    #[test]
    fn a_pod_that_is_cut_off_has_a_link_and_no_way() {
        let pod = endpoint("a", "10.64.1.5", true);
        let endpoints: Endpoints = Arc::new(BTreeMap::from([(pod.link.clone(), pod.clone())]));
        let foreign = Foreign {
            attachment: pod.id.to_string(),
            address: pod.addresses[0],
            block: "10.64.1.0/26".parse().unwrap(),
            owner: "b".parse().ok(),
        };
        let mut desired = Desired::default();
        desire_without(
            &endpoints,
            &BTreeMap::from([(pod.link.clone(), foreign)]),
            &mut desired,
        );
        let link = desired.links.values().next().unwrap();
        assert!(!link.settings.forwarding && link.settings.rp_filter == 1);
        assert!(desired.routes.is_empty() && desired.neighbours.is_empty());
    }
}
