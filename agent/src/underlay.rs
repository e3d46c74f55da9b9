//! Which device and address carry the tunnels: decided here, at the start and whenever
//! something about them changes, from a survey of the
//! node's devices, addresses and default routes, which is plain data.
//!
//! A choice that is not clear is an error that lists the candidates: a wrong
//! guess would look like a working network that nobody can reach.

use std::net::{IpAddr, Ipv4Addr};

use regex_lite::Regex;
use thiserror::Error;
use viaduct_model::{Cidr, MacAddr};

use crate::dataplane::hints::Hint;
use crate::dataplane::objects::is_ours;
use crate::state::UnderlayLink;

/// What this network namespace has to offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The devices.
    pub links: Vec<SurveyedLink>,
    /// The IPv4 default routes of the main table.
    pub default_routes: Vec<DefaultRoute>,
}

/// A device in a [`Survey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedLink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Its MAC, if it speaks ARP.
    pub mac: Option<MacAddr>,
    /// Its IPv4 addresses of global scope that are not secondary.
    pub addresses: Vec<SurveyedAddress>,
}

/// An address in a [`Survey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurveyedAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The length of its on-link prefix.
    pub prefix_len: u8,
}

/// A default route in a [`Survey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The device that it leaves by.
    pub index: u32,
    /// The next hop, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// The source address that it prefers, if it names one.
    pub source: Option<Ipv4Addr>,
    /// Its metric; the lowest wins.
    pub metric: u32,
}

/// How the user wants the underlay chosen.
#[derive(Debug, Clone)]
pub enum Wish {
    /// `--iface`: this device.
    Iface(String),
    /// `--iface-regex`: the one device whose name matches.
    IfaceRegex(Regex),
    /// `--can-reach`: the device that has this source address, which is the one
    /// that the kernel uses towards the address named.
    CanReach {
        /// The address that must be reached.
        target: IpAddr,
        /// The source address that the kernel would use.
        source: Ipv4Addr,
    },
    /// The default route's device.
    DefaultRoute,
}

/// Why no underlay could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnderlayError {
    /// Nothing fits.
    #[error("no underlay address found by {by}: {why}; candidates: {candidates}")]
    None {
        /// The flag, or what stood in for it.
        by: String,
        /// What was missing.
        why: String,
        /// What is there.
        candidates: String,
    },
    /// More than one fits.
    #[error(
        "the underlay address is ambiguous by {by}; candidates: {candidates}; name one with --iface or --public-ip"
    )]
    Ambiguous {
        /// The flag, or what stood in for it.
        by: String,
        /// What fits.
        candidates: String,
    },
}

/// Chooses the underlay.
///
/// `public_ip` picks among a device's addresses if it is one of them, and
/// otherwise is what peers are told (a 1:1 NAT).
///
/// # Errors
/// When nothing fits or more than one does; lists the candidates.
pub fn choose(
    survey: &Survey,
    wish: &Wish,
    public_ip: Option<Ipv4Addr>,
) -> Result<UnderlayLink, UnderlayError> {
    let by = describe(wish);
    let none = |why: String| UnderlayError::None {
        by: by.clone(),
        why,
        candidates: list(survey.links.iter().filter(|l| !l.loopback)),
    };
    let has = |l: &SurveyedLink, ip: Ipv4Addr| l.addresses.iter().any(|a| a.address == ip);
    let mut preferred = None;
    let mut links: Vec<&SurveyedLink> = match wish {
        Wish::Iface(name) => survey.links.iter().filter(|l| &l.name == name).collect(),
        Wish::IfaceRegex(re) => survey
            .links
            .iter()
            .filter(|l| !l.loopback && re.is_match(&l.name))
            .collect(),
        Wish::CanReach { source, .. } => {
            preferred = Some(*source);
            survey.links.iter().filter(|l| has(l, *source)).collect()
        }
        // A local --public-ip says more than the default route does.
        Wish::DefaultRoute
            if public_ip.is_some_and(|ip| survey.links.iter().any(|l| has(l, ip))) =>
        {
            survey
                .links
                .iter()
                .filter(|l| public_ip.is_some_and(|ip| has(l, ip)))
                .collect()
        }
        Wish::DefaultRoute => {
            let best = survey.default_routes.iter().map(|r| r.metric).min();
            let best: Vec<_> = survey
                .default_routes
                .iter()
                .filter(|r| Some(r.metric) == best)
                .collect();
            if let [route] = best[..] {
                preferred = route.source.or_else(|| on_link_with(survey, route));
            }
            survey
                .links
                .iter()
                .filter(|l| best.iter().any(|r| r.index == l.index))
                .collect()
        }
    };
    if links.is_empty() {
        return Err(none("no such device".to_owned()));
    }
    links.retain(|l| l.up && !l.addresses.is_empty());
    let link = match links[..] {
        [] => return Err(none("the device is down or has no IPv4 address".to_owned())),
        [link] => link,
        _ => {
            return Err(UnderlayError::Ambiguous {
                by,
                candidates: list(links),
            });
        }
    };
    let address = match (
        public_ip.filter(|ip| has(link, *ip)),
        preferred,
        &link.addresses[..],
    ) {
        (Some(ip), _, _) | (None, Some(ip), _) => ip,
        (None, None, [only]) => only.address,
        _ => {
            return Err(UnderlayError::Ambiguous {
                by,
                candidates: list([link]),
            });
        }
    };
    Ok(chosen(link, address, public_ip))
}

/// What is left of the last choice when no new one is clear: the device of that name, if
/// it is up and has the same address still, or one only.
pub fn stay(
    survey: &Survey,
    last: &UnderlayLink,
    public_ip: Option<Ipv4Addr>,
) -> Option<UnderlayLink> {
    let link = survey.links.iter().find(|l| l.name == last.name && l.up)?;
    let same = link.addresses.iter().find(|a| a.address == last.address);
    let address = match (same, &link.addresses[..]) {
        (Some(same), _) => same.address,
        (None, [only]) => only.address,
        _ => return None,
    };
    Some(chosen(link, address, public_ip))
}

/// Whether a notification can be about the underlay: our own devices, routes and
/// neighbours never are.
pub fn concerns(hint: &Hint) -> bool {
    match hint {
        Hint::Resync | Hint::Address { .. } => true,
        Hint::Link { name, .. } => !is_ours(name),
        Hint::Route { ours, .. } => !ours,
        Hint::Neighbour { .. } | Hint::Fdb { .. } | Hint::Settings { .. } | Hint::Host(_) => false,
    }
}

fn chosen(link: &SurveyedLink, address: Ipv4Addr, public_ip: Option<Ipv4Addr>) -> UnderlayLink {
    UnderlayLink {
        name: link.name.clone(),
        index: link.index,
        address,
        public_address: public_ip.unwrap_or(address),
        networks: link
            .addresses
            .iter()
            .filter_map(|a| Cidr::new(a.address.into(), a.prefix_len).ok())
            .collect(),
        mac: link.mac,
        mtu: link.mtu,
    }
}

/// Whether others on the link may still send what is for `now` to where this node was
/// `before`, so that they have to be told (RFC 5227, section 2.3).
pub fn has_moved(before: &UnderlayLink, now: &UnderlayLink) -> bool {
    now.mac.is_some() && (before.mac, before.address) != (now.mac, now.address)
}

/// The one address of the route's device whose prefix holds the next hop.
fn on_link_with(survey: &Survey, route: &DefaultRoute) -> Option<Ipv4Addr> {
    let gateway = route.gateway?;
    let link = survey.links.iter().find(|l| l.index == route.index)?;
    let mut fits = link.addresses.iter().filter(|a| {
        Cidr::new(a.address.into(), a.prefix_len).is_ok_and(|net| net.contains(gateway.into()))
    });
    match (fits.next(), fits.next()) {
        (Some(only), None) => Some(only.address),
        _ => None,
    }
}

fn describe(wish: &Wish) -> String {
    match wish {
        Wish::Iface(name) => format!("--iface {name}"),
        Wish::IfaceRegex(re) => format!("--iface-regex {re}"),
        Wish::CanReach { target, .. } => format!("--can-reach {target}"),
        Wish::DefaultRoute => "the default route".to_owned(),
    }
}

fn list<'a>(links: impl IntoIterator<Item = &'a SurveyedLink>) -> String {
    let shown: Vec<String> = links
        .into_iter()
        .map(|l| {
            let addresses: Vec<String> = l
                .addresses
                .iter()
                .map(|a| format!("{}/{}", a.address, a.prefix_len))
                .collect();
            let addresses = if addresses.is_empty() {
                "no IPv4 address".to_owned()
            } else {
                addresses.join(" ")
            };
            format!(
                "{} ({addresses}{})",
                l.name,
                if l.up { "" } else { ", down" }
            )
        })
        .collect();
    if shown.is_empty() {
        "none".to_owned()
    } else {
        shown.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::objects::Route;

    fn link(name: &str, index: u32, addresses: &[(&str, u8)]) -> SurveyedLink {
        SurveyedLink {
            name: name.to_owned(),
            index,
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            mac: (name != "lo").then_some(MacAddr([2, 0, 0, 0, 0, 7])),
            addresses: addresses
                .iter()
                .map(|(a, prefix_len)| SurveyedAddress {
                    address: a.parse().unwrap(),
                    prefix_len: *prefix_len,
                })
                .collect(),
        }
    }

    fn route(index: u32, gateway: &str, metric: u32) -> DefaultRoute {
        DefaultRoute {
            index,
            gateway: Some(gateway.parse().unwrap()),
            source: None,
            metric,
        }
    }

    fn survey() -> Survey {
        Survey {
            links: vec![
                link("lo", 1, &[]),
                link("eth0", 2, &[("192.0.2.5", 24)]),
                link("eth1", 3, &[("198.51.100.5", 24), ("203.0.113.5", 24)]),
                link("eth2", 4, &[]),
            ],
            default_routes: vec![route(2, "192.0.2.1", 0), route(3, "203.0.113.1", 100)],
        }
    }

    fn pick(
        survey: &Survey,
        wish: Wish,
        public: Option<&str>,
    ) -> Result<(String, String), UnderlayError> {
        choose(survey, &wish, public.map(|p| p.parse().unwrap()))
            .map(|u| (u.name, u.address.to_string()))
    }

    #[test]
    fn the_default_route_of_the_lowest_metric_decides() {
        assert_eq!(
            pick(&survey(), Wish::DefaultRoute, None).unwrap(),
            ("eth0".into(), "192.0.2.5".into())
        );
    }

    #[test]
    fn two_equal_default_routes_are_ambiguous_and_listed() {
        let mut s = survey();
        s.default_routes[1].metric = 0;
        let error = pick(&s, Wish::DefaultRoute, None).unwrap_err().to_string();
        assert!(
            error.contains("eth0 (192.0.2.5/24)") && error.contains("eth1"),
            "{error}"
        );
    }

    #[test]
    fn several_addresses_need_a_hint_or_a_next_hop() {
        let eth1 = || Wish::Iface("eth1".into());
        assert!(matches!(
            pick(&survey(), eth1(), None),
            Err(UnderlayError::Ambiguous { .. })
        ));
        assert_eq!(
            pick(&survey(), eth1(), Some("203.0.113.5")).unwrap().1,
            "203.0.113.5"
        );
        let mut s = survey();
        s.default_routes.remove(0);
        assert_eq!(pick(&s, Wish::DefaultRoute, None).unwrap().1, "203.0.113.5");
    }

    #[test]
    fn while_no_choice_is_clear_the_last_device_is_followed_as_far_as_it_goes() {
        let last = choose(&survey(), &Wish::DefaultRoute, None).unwrap();
        let mut s = survey();
        s.default_routes.clear();
        assert_eq!(stay(&s, &last, None), Some(last.clone()));
        // Another index, MTU and address: made anew under its name.
        s.links[1] = link("eth0", 9, &[("192.0.2.77", 24)]);
        s.links[1].mtu = 1400;
        let found = stay(&s, &last, None).unwrap();
        assert_eq!((found.index, found.mtu), (9, 1400));
        assert_eq!(found.public_address.to_string(), "192.0.2.77");
        s.links[1].up = false;
        assert_eq!(stay(&s, &last, None), None);
        s.links[1] = link("eth0", 9, &[("192.0.2.77", 24), ("192.0.2.78", 24)]);
        assert_eq!(stay(&s, &last, None), None);
        s.links.remove(1);
        assert_eq!(stay(&s, &last, None), None);
    }

    #[test]
    fn others_are_told_of_another_mac_or_address_and_of_nothing_else() {
        let before = choose(&survey(), &Wish::DefaultRoute, None).unwrap();
        let moved = |change: fn(&mut UnderlayLink)| {
            let mut now = before.clone();
            change(&mut now);
            has_moved(&before, &now)
        };
        assert!(moved(|now| now.mac = Some(MacAddr([2, 0, 0, 0, 0, 8]))));
        assert!(moved(|now| now.address = [192, 0, 2, 77].into()));
        assert!(!moved(|now| now.mtu = 1400));
        assert!(!moved(|now| now.index = 9));
        assert!(!moved(|now| now.mac = None), "nobody would understand it");
    }

    #[test]
    fn our_own_changes_are_no_reason_to_look_the_underlay_over() {
        let link = |name: &str| Hint::Link {
            index: 7,
            name: name.into(),
            now: None,
        };
        let route = |ours| Hint::Route {
            route: Route::blackhole("10.64.0.0/26".parse().unwrap()),
            index: None,
            ours,
            gone: false,
        };
        assert!(concerns(&Hint::Resync) && concerns(&link("eth0")) && concerns(&route(false)));
        assert!(!concerns(&link("via.vx4")) && !concerns(&route(true)));
    }

    #[test]
    fn a_foreign_public_ip_is_told_to_peers_only() {
        let chosen = choose(
            &survey(),
            &Wish::DefaultRoute,
            Some("8.8.4.4".parse().unwrap()),
        )
        .unwrap();
        assert_eq!(chosen.address.to_string(), "192.0.2.5");
        assert_eq!(chosen.public_address.to_string(), "8.8.4.4");
    }

    #[test]
    fn a_local_public_ip_beats_the_default_route() {
        assert_eq!(
            pick(&survey(), Wish::DefaultRoute, Some("198.51.100.5"))
                .unwrap()
                .0,
            "eth1"
        );
    }

    #[test]
    fn a_regex_must_match_one_usable_device() {
        let re = |s: &str| Wish::IfaceRegex(Regex::new(s).unwrap());
        assert_eq!(pick(&survey(), re("eth[02]"), None).unwrap().0, "eth0");
        assert!(matches!(
            pick(&survey(), re("eth"), None),
            Err(UnderlayError::Ambiguous { .. })
        ));
        assert!(matches!(
            pick(&survey(), re("wlan"), None),
            Err(UnderlayError::None { .. })
        ));
    }

    #[test]
    fn what_is_missing_is_said_with_what_is_there() {
        let error = pick(&survey(), Wish::Iface("eth9".into()), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--iface eth9") && error.contains("eth0 (192.0.2.5/24)"),
            "{error}"
        );
        let error = pick(&survey(), Wish::Iface("eth2".into()), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no IPv4 address"), "{error}");
    }
}
