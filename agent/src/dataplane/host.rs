//! What of the host's own settings the right ones of our links depend on: pure.
//!
//! Of the source check that a host has for all links (`net.ipv4.conf.all.rp_filter`) and
//! a link's own, the kernel takes the greater. On tunnels we want none: each packet would
//! pay for it, and what another node itself sends to a pod may carry that node's underlay
//! address, whose way back does not lead through the tunnel. Where the host wants the
//! strict one for all, only a loose one of the tunnel's own lets that through
//! (docs/adr/0077).

use super::objects::{Desired, is_tunnel};

/// What the host has chosen for all links, if that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host {
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter: Option<u8>,
}

/// The source check of tunnels on such a host.
pub fn tunnel_rp_filter(host: Host) -> u8 {
    match host.rp_filter {
        Some(0) => 0,
        // Loose does no harm where nothing is known.
        _ => 2,
    }
}

/// Makes what is desired suit the host.
pub fn suit(desired: &mut Desired, host: Host) {
    for (name, link) in &mut desired.links {
        if is_tunnel(name) {
            link.settings.rp_filter = tunnel_rp_filter(host);
        }
    }
}

/// Whether what is desired suits a host that has changed.
pub fn suits(desired: &Desired, host: Host) -> bool {
    let mut tunnels = desired.links.iter().filter(|(name, _)| is_tunnel(name));
    tunnels.all(|(_, link)| link.settings.rp_filter == tunnel_rp_filter(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vxlan::BACKEND;
    use crate::dataplane::endpoints::HOST_END;
    use crate::dataplane::objects::VXLAN_LINK;
    use crate::dataplane::testing::{Cluster, endpoint};

    #[test]
    fn a_tunnel_checks_no_sources_unless_the_host_may_make_it_strict() {
        let pod = endpoint("a", "10.64.0.5", true);
        let link = pod.link.clone();
        let endpoints = std::sync::Arc::new([(link.clone(), pod)].into());
        let mut desired = BACKEND.desired(&Cluster::new().state(), &endpoints);
        for (all, wanted) in [(None, 2), (Some(0), 0), (Some(1), 2), (Some(2), 2)] {
            let host = Host { rp_filter: all };
            suit(&mut desired, host);
            assert_eq!(desired.links[VXLAN_LINK].settings.rp_filter, wanted);
            assert!(suits(&desired, host));
            let other = if wanted == 0 { 1 } else { 0 };
            let other = Host {
                rp_filter: Some(other),
            };
            assert!(!suits(&desired, other), "{all:?}");
            // Pods are held to their addresses all the same.
            assert_eq!(desired.links[link.as_str()].settings, HOST_END);
        }
    }
}
