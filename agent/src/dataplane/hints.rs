//! Hints: what the kernel says has just changed, and whether that matters.
//!
//! A hint only ever says *that* it is time to look; what to do is decided from a
//! dump. So a hint that is lost, doubled or late costs time and never correctness
//! (docs/adr/0020). This file decides, purely, which hints are worth a look: echoes
//! of our own changes and other programs' business are not.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use viaduct_model::MacAddr;

use super::host::{Host, suits};
use super::objects::{
    ActualLink, Address, Desired, DesiredLink, LinkKind, LinkName, Route, RouteKind, is_host_end,
    is_ours,
};

/// Something that changed in the kernel. Links are numbered here, since that is how
/// the kernel speaks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A link, as it is now or gone.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: LinkName,
        /// What it is now.
        now: Option<Box<ActualLink>>,
    },
    /// An IPv4 address.
    Address {
        /// The link's index.
        index: u32,
        /// The address.
        address: Ipv4Addr,
        /// The prefix length.
        prefix_len: u8,
        /// Whether it is gone.
        gone: bool,
    },
    /// An IPv4 route of the main table.
    Route {
        /// The route, without its link.
        route: Route,
        /// The link's index.
        index: Option<u32>,
        /// Whether it carries our protocol number.
        ours: bool,
        /// Whether it is gone.
        gone: bool,
    },
    /// An IPv4 neighbour.
    Neighbour {
        /// The link's index.
        index: u32,
        /// The address.
        address: Ipv4Addr,
        /// Its MAC, if it is there and permanent.
        mac: Option<MacAddr>,
    },
    /// A forwarding entry.
    Fdb {
        /// The link's index.
        index: u32,
        /// The MAC.
        mac: MacAddr,
        /// The underlay address, if it is a plain entry.
        remote: Option<Ipv4Addr>,
        /// Whether it is gone.
        gone: bool,
    },
    /// IPv4 settings of a link that were changed, each if it is known.
    Settings {
        /// The link's index.
        index: u32,
        /// Forwarding.
        forwarding: Option<bool>,
        /// The source check.
        rp_filter: Option<u8>,
        /// Answering ARP for others.
        proxy_arp: Option<bool>,
    },
    /// What the host has chosen for all links was changed.
    Host(Host),
    /// Hints were lost: anything may have changed.
    Resync,
}

/// How much a hint matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drift {
    /// Not at all.
    None,
    /// Something of ours is there that is not desired: maybe a pod that is being
    /// wired at this moment. It is looked at soon.
    Excess,
    /// Somebody else's route into a block of ours is gone: what was said about it
    /// is to be taken back.
    Rival,
    /// Something that is desired is not as it should be: traffic suffers.
    Broken,
}

/// What hints are compared with: the newest decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// What should be there.
    pub desired: Arc<Desired>,
    /// Our links by index, as the last dump found them.
    pub names: BTreeMap<u32, LinkName>,
    /// The same of the links that are not ours and carry pods' packets as they are.
    pub foreign: BTreeMap<u32, LinkName>,
}

/// Whether a hint is about somebody else's route into what is ours.
pub fn is_about_rival(hint: &Hint, expected: &Expected) -> bool {
    match hint {
        Hint::Resync => true,
        Hint::Route {
            route, ours: false, ..
        } => in_our_way(route, &expected.desired),
        _ => false,
    }
}

/// How much `hint` matters.
pub fn judge(hint: &Hint, expected: &Expected) -> Drift {
    let desired = &expected.desired;
    let our = |index: &u32| expected.names.get(index);
    match hint {
        Hint::Resync => Drift::Broken,
        Hint::Host(host) if suits(desired, *host) => Drift::None,
        Hint::Host(_) => Drift::Broken,
        // What changes about the underlay takes our routes there away without a word.
        Hint::Link { index, name, .. }
            if expected.foreign.contains_key(index) || desired.forwarding.contains(name) =>
        {
            Drift::Broken
        }
        Hint::Address { index, .. } if expected.foreign.contains_key(index) => Drift::Broken,
        Hint::Settings {
            index, forwarding, ..
        } if expected.foreign.contains_key(index) => match forwarding {
            Some(false) => Drift::Broken,
            _ => Drift::None,
        },
        Hint::Link { index, name, now } => judge_link(*index, name, now.as_deref(), expected),
        Hint::Address {
            index,
            address,
            prefix_len,
            gone,
        } => {
            let Some(link) = our(index) else {
                return Drift::None;
            };
            let wanted = desired.addresses.contains(&Address {
                link: link.clone(),
                address: *address,
                prefix_len: *prefix_len,
            });
            excess_or_missing(wanted, *gone)
        }
        Hint::Route {
            route,
            index,
            ours,
            gone,
        } => {
            let mut route = route.clone();
            // Any other link never makes a route a desired one.
            let known = |i: &u32| our(i).or_else(|| expected.foreign.get(i)).cloned();
            route.link = index.map(|i| known(&i).unwrap_or_else(|| "".into()));
            judge_route(&route, *ours, *gone, desired)
        }
        Hint::Neighbour {
            index,
            address,
            mac,
        } => {
            let Some(link) = our(index) else {
                return Drift::None;
            };
            match (desired.neighbours.get(&(link.clone(), *address)), mac) {
                (Some(want), Some(is)) if want == is => Drift::None,
                (Some(_), _) => Drift::Broken,
                (None, Some(_)) => Drift::Excess,
                (None, None) => Drift::None,
            }
        }
        Hint::Fdb {
            index,
            mac,
            remote,
            gone,
        } => {
            let Some(link) = our(index) else {
                return Drift::None;
            };
            match desired.fdb.get(&(link.clone(), *mac)) {
                // The other entry of a MAC that is moved goes by our own hand.
                Some(want) if *gone && remote.is_some() && *remote != Some(*want) => Drift::None,
                Some(want) if !gone && *remote == Some(*want) => Drift::None,
                Some(_) => Drift::Broken,
                None if *gone => Drift::None,
                None => Drift::Excess,
            }
        }
        Hint::Settings {
            index,
            forwarding,
            rp_filter,
            proxy_arp,
        } => {
            let Some(link) = our(index).and_then(|link| desired.links.get(link)) else {
                return Drift::None;
            };
            let want = link.settings;
            let right = forwarding.is_none_or(|is| is == want.forwarding)
                && rp_filter.is_none_or(|is| is == want.rp_filter)
                && proxy_arp.is_none_or(|is| is == want.proxy_arp);
            if right { Drift::None } else { Drift::Broken }
        }
    }
}

fn excess_or_missing(wanted: bool, gone: bool) -> Drift {
    match (wanted, gone) {
        (true, true) => Drift::Broken,
        (false, false) => Drift::Excess,
        _ => Drift::None,
    }
}

fn judge_link(index: u32, name: &LinkName, now: Option<&ActualLink>, expected: &Expected) -> Drift {
    let desired = &expected.desired;
    let known = expected.names.get(&index);
    // A link of ours that somebody renamed.
    if let Some(known) = known
        && known != name
        && desired.links.contains_key(known)
    {
        return Drift::Broken;
    }
    let Some(want) = desired.links.get(name) else {
        let ours = is_ours(name) && !desired.left_alone.contains(name);
        return if ours && now.is_some() {
            Drift::Excess
        } else {
            Drift::None
        };
    };
    match now {
        Some(is) if known.is_some() && is_right(want, is) => Drift::None,
        Some(_) => Drift::Broken,
        // A host end goes with its pod; the CNI server will say so.
        None if want.kind == LinkKind::Veth => Drift::Excess,
        None => Drift::Broken,
    }
}

/// Whether nothing about a link needs repair.
pub fn is_right(want: &DesiredLink, is: &ActualLink) -> bool {
    is.up
        && is.kind == want.kind
        && (want.mac.is_none() || is.mac == want.mac)
        && is.mtu == want.mtu
        && is.settings == Some(want.settings)
        && is
            .settings6
            .is_none_or(|v6| !v6.accept_ra && !v6.generates_addresses)
}

fn judge_route(route: &Route, ours: bool, gone: bool, desired: &Desired) -> Drift {
    let wanted = ours && desired.routes.contains(route);
    if gone || wanted {
        return match (gone, wanted) {
            (true, true) => Drift::Broken,
            (true, false) if !ours && in_our_way(route, desired) => Drift::Rival,
            _ => Drift::None,
        };
    }
    // Another route to a destination of ours may have taken its place without a word.
    let replaces = desired
        .routes
        .range(Route::least_to(route.destination)..)
        .next()
        .is_some_and(|first| first.destination == route.destination);
    match (replaces, ours) {
        (true, _) => Drift::Broken,
        (false, true) => Drift::Excess,
        (false, false) if in_our_way(route, desired) => Drift::Rival,
        (false, false) => Drift::None,
    }
}

/// Whether a route leads into a destination of ours, whole or in part.
fn in_our_way(route: &Route, desired: &Desired) -> bool {
    let mut end = Route::least_to(route.destination);
    // Past every route to the same destination.
    end.kind = RouteKind::Other(u8::MAX);
    let before = desired.routes.range(..=end).rev();
    // Blocks do not overlap, so that one of them decides; pods' own routes may stand
    // between a block and a part of it.
    let mut decisive = before
        .filter(|ours| !ours.link.as_ref().is_some_and(|link| is_host_end(link)))
        .map(|ours| ours.destination);
    decisive
        .next()
        .is_some_and(|ours| ours.covers(&route.destination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vxlan::BACKEND;
    use crate::dataplane::objects::{Settings, Settings6, VXLAN_LINK};
    use crate::dataplane::testing::Cluster;

    fn expected() -> Expected {
        Expected {
            desired: Arc::new(BACKEND.desired(&Cluster::new().state(), &Default::default())),
            names: BTreeMap::from([(7, VXLAN_LINK.into())]),
            foreign: BTreeMap::new(),
        }
    }

    fn tunnel(expected: &Expected) -> ActualLink {
        let want = &expected.desired.links[VXLAN_LINK];
        ActualLink {
            index: 7,
            kind: want.kind.clone(),
            mac: want.mac,
            mtu: want.mtu,
            up: true,
            settings: Some(want.settings),
            settings6: Some(Settings6 {
                accept_ra: false,
                generates_addresses: false,
            }),
        }
    }

    fn link_hint(now: Option<ActualLink>) -> Hint {
        Hint::Link {
            index: 7,
            name: VXLAN_LINK.into(),
            now: now.map(Box::new),
        }
    }

    #[test]
    fn the_echo_of_everything_desired_is_no_drift_and_its_loss_is() {
        let expected = expected();
        let right = tunnel(&expected);
        assert_eq!(judge(&link_hint(Some(right)), &expected), Drift::None);
        assert_eq!(judge(&link_hint(None), &expected), Drift::Broken);
        for (gone, drift) in [(false, Drift::None), (true, Drift::Broken)] {
            for a in &expected.desired.addresses {
                let hint = Hint::Address {
                    index: 7,
                    address: a.address,
                    prefix_len: a.prefix_len,
                    gone,
                };
                assert_eq!(judge(&hint, &expected), drift);
            }
            for route in &expected.desired.routes {
                let hint = Hint::Route {
                    route: Route {
                        link: None,
                        ..route.clone()
                    },
                    index: route.link.is_some().then_some(7),
                    ours: true,
                    gone,
                };
                assert_eq!(judge(&hint, &expected), drift, "{route}");
            }
            for ((_, mac), remote) in &expected.desired.fdb {
                let hint = Hint::Fdb {
                    index: 7,
                    mac: *mac,
                    remote: Some(*remote),
                    gone,
                };
                assert_eq!(judge(&hint, &expected), drift);
            }
            for ((_, address), mac) in &expected.desired.neighbours {
                let hint = Hint::Neighbour {
                    index: 7,
                    address: *address,
                    mac: (!gone).then_some(*mac),
                };
                assert_eq!(judge(&hint, &expected), drift);
            }
        }
    }

    #[test]
    fn every_fault_of_the_tunnel_is_drift() {
        let expected = expected();
        let faults: [fn(&mut ActualLink); 6] = [
            |l| l.up = false,
            |l| l.mac = None,
            |l| l.mtu = 1400,
            |l| l.kind = LinkKind::Veth,
            |l| l.settings = None,
            |l| {
                l.settings6 = Some(Settings6 {
                    accept_ra: true,
                    generates_addresses: false,
                });
            },
        ];
        for fault in faults {
            let mut link = tunnel(&expected);
            fault(&mut link);
            assert_eq!(judge(&link_hint(Some(link)), &expected), Drift::Broken);
        }
        let renamed = Hint::Link {
            index: 7,
            name: "other".into(),
            now: Some(Box::new(tunnel(&expected))),
        };
        assert_eq!(judge(&renamed, &expected), Drift::Broken);
        let Settings { rp_filter, .. } = expected.desired.links[VXLAN_LINK].settings;
        for (value, drift) in [(rp_filter, Drift::None), (1, Drift::Broken)] {
            let hint = Hint::Settings {
                index: 7,
                forwarding: None,
                rp_filter: Some(value),
                proxy_arp: None,
            };
            assert_eq!(judge(&hint, &expected), drift);
        }
    }

    #[test]
    fn others_business_is_no_drift_but_a_rival_route_is() {
        let expected = expected();
        let foreign = |destination: &str| Hint::Route {
            route: Route::through(destination.parse().unwrap(), "".into()),
            index: Some(2),
            ours: false,
            gone: false,
        };
        assert_eq!(judge(&foreign("10.9.0.0/24"), &expected), Drift::None);
        assert_eq!(judge(&foreign("10.64.1.0/26"), &expected), Drift::Broken);
        // A part of a block, or the end of a conflict, only changes what is said.
        assert_eq!(judge(&foreign("10.64.1.7/32"), &expected), Drift::Rival);
        assert!(is_about_rival(&foreign("10.64.1.7/32"), &expected));
        assert!(!is_about_rival(&foreign("10.9.0.0/24"), &expected));
        let mut gone = foreign("10.64.1.0/26");
        if let Hint::Route { gone, .. } = &mut gone {
            *gone = true;
        }
        assert_eq!(judge(&gone, &expected), Drift::Rival);
        let neighbour = Hint::Neighbour {
            index: 2,
            address: "10.64.1.0".parse().unwrap(),
            mac: None,
        };
        assert_eq!(judge(&neighbour, &expected), Drift::None);
        let pod = Hint::Link {
            index: 9,
            name: "via0123456789ab".into(),
            now: Some(Box::new(tunnel(&expected))),
        };
        assert_eq!(judge(&pod, &expected), Drift::Excess);
    }
}
