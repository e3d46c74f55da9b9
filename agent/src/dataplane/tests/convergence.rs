//! From any state of the kernel to the desired one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use viaduct_model::{Cidr, MacAddr};

use super::*;
use crate::dataplane::diff::diff;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::objects::{
    Address, FdbEntry, Route, RouteKind, Scope, VXLAN_LINK, Vxlan, is_ours,
};

/// Links that damage is done on and with: the tunnel, the pod, a stale pod, others'.
fn link_names() -> Vec<LinkName> {
    vec![
        VXLAN_LINK.into(),
        one_pod(true).1,
        "via0000deadbeef".into(),
        "eth0".into(),
        "cni0".into(),
    ]
}

fn any_link() -> impl Strategy<Value = LinkName> {
    prop::sample::select(link_names())
}

fn any_ip() -> impl Strategy<Value = Ipv4Addr> {
    prop::sample::select(vec![
        Ipv4Addr::new(10, 64, 0, 0),
        Ipv4Addr::new(10, 64, 0, 5),
        Ipv4Addr::new(10, 64, 1, 0),
        Ipv4Addr::new(10, 64, 2, 0),
        Ipv4Addr::new(192, 168, 65, 1),
    ])
}

fn any_mac() -> impl Strategy<Value = MacAddr> {
    let (_, link) = one_pod(true);
    let of = |node: &str| MacAddr::for_vtep(&node.parse().unwrap());
    let pod = endpoint("pod", "10.64.0.5", true).pod_mac;
    assert!(is_ours(&link));
    prop::sample::select(vec![of("a"), of("b"), of("c"), pod, MacAddr([0; 6])])
}

fn any_route() -> impl Strategy<Value = Route> {
    (
        any_ip(),
        prop::sample::select(vec![26u8, 32]),
        prop::sample::select(vec![
            RouteKind::Unicast,
            RouteKind::Blackhole,
            RouteKind::Other(7),
        ]),
        prop::sample::select(vec![Scope::Universe, Scope::Link]),
        prop::option::of(any_ip()),
        prop::option::of(any_link()),
        prop::option::of(Just(Ipv4Addr::new(10, 64, 0, 0))),
        (any::<bool>(), any::<bool>()),
        prop::sample::select(vec![0u32, 0, 100]),
    )
        .prop_map(
            |(ip, len, kind, scope, via, link, source, (onlink, odd), metric)| Route {
                destination: Cidr::new(IpAddr::V4(ip), len).unwrap(),
                kind,
                scope,
                via,
                link,
                onlink,
                source,
                metric,
                mtu: None,
                tos: 0,
                odd,
            },
        )
}

fn any_kind() -> impl Strategy<Value = LinkKind> {
    prop_oneof![
        Just(LinkKind::Veth),
        Just(LinkKind::Other("bridge".into())),
        (1u32..3, any::<bool>()).prop_map(|(vni, learning)| LinkKind::Vxlan(Vxlan {
            vni,
            port: 8472,
            local: Some(Ipv4Addr::new(192, 168, 64, 1)),
            underlay: 2,
            learning,
        })),
    ]
}

/// Something that somebody did to the kernel.
#[derive(Debug, Clone)]
enum Damage {
    Link(LinkName, LinkKind, bool, u32),
    NoLink(LinkName),
    Down(LinkName),
    Address(LinkName, Ipv4Addr, u8),
    NoAddress(usize),
    Route(Route, bool),
    NoRoute(usize),
    Neighbour(LinkName, Ipv4Addr, MacAddr),
    NoNeighbour(usize),
    Fdb(LinkName, MacAddr, Option<Ipv4Addr>, bool),
    NoFdb(usize),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let place = 0usize..8;
    prop_oneof![
        (any_link(), any_kind(), any::<bool>(), 1400u32..1403)
            .prop_map(|(l, k, u, m)| Damage::Link(l, k, u, m)),
        any_link().prop_map(Damage::NoLink),
        any_link().prop_map(Damage::Down),
        (any_link(), any_ip(), 30u8..=32).prop_map(|(l, a, p)| Damage::Address(l, a, p)),
        place.clone().prop_map(Damage::NoAddress),
        (any_route(), any::<bool>()).prop_map(|(r, ours)| Damage::Route(r, ours)),
        place.clone().prop_map(Damage::NoRoute),
        (any_link(), any_ip(), any_mac()).prop_map(|(l, a, m)| Damage::Neighbour(l, a, m)),
        place.clone().prop_map(Damage::NoNeighbour),
        (
            any_link(),
            any_mac(),
            prop::option::of(any_ip()),
            any::<bool>()
        )
            .prop_map(|(l, m, r, p)| Damage::Fdb(l, m, r, p)),
        place.prop_map(Damage::NoFdb),
    ]
}

fn damage(world: &mut World, damage: Damage) {
    match damage {
        Damage::Link(name, kind, up, mtu) => {
            // Two VXLAN links of one network cannot be in one kernel.
            let rival = world.links.values().any(|l| {
                matches!((&l.kind, &kind), (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) if a.vni == b.vni)
            });
            let foreign_tunnel = !is_ours(&name) && matches!(kind, LinkKind::Vxlan(_));
            if !rival && !foreign_tunnel {
                world.remove_link(&name);
                let link = world.add_link(&name, kind);
                link.up = up;
                link.mtu = mtu;
            }
        }
        Damage::NoLink(name) => world.remove_link(&name),
        Damage::Down(name) => world.down(&name),
        Damage::Address(link, address, prefix_len) => {
            if world.links.contains_key(&link) {
                world.addresses.insert(Address {
                    link,
                    address,
                    prefix_len,
                });
            }
        }
        Damage::NoAddress(n) => {
            let gone = world.addresses.iter().nth(n).cloned();
            world.addresses.retain(|a| Some(a) != gone.as_ref());
        }
        Damage::Route(route, ours) => {
            let up = |l: &LinkName| world.links.get(l).is_some_and(|l| l.up);
            if route.link.as_ref().is_none_or(up) && !world.routes.contains(&(route.clone(), ours))
            {
                world.routes.insert(0, (route, ours));
            }
        }
        Damage::NoRoute(n) => {
            if n < world.routes.len() {
                world.routes.remove(n);
            }
        }
        Damage::Neighbour(link, address, mac) => {
            if world.links.get(&link).is_some_and(|l| l.up) {
                world.neighbours.insert((link, address), mac);
            }
        }
        Damage::NoNeighbour(n) => {
            let gone = world.neighbours.keys().nth(n).cloned();
            world.neighbours.retain(|k, _| Some(k) != gone.as_ref());
        }
        Damage::Fdb(link, mac, remote, plain) => {
            let tunnel = |l: &LinkName| matches!(world.links.get(l), Some(l) if matches!(l.kind, LinkKind::Vxlan(_)));
            if tunnel(&link) {
                world.fdb.retain(|e| e.link != link || e.mac != mac);
                world.fdb.insert(FdbEntry {
                    link,
                    mac,
                    remote,
                    plain,
                });
            }
        }
        Damage::NoFdb(n) => {
            let gone = world.fdb.iter().nth(n).cloned();
            world.fdb.retain(|e| Some(e) != gone.as_ref());
        }
    }
}

/// Applies until nothing differs.
fn converge(kernel: &mut FakeKernel, desired: &Desired) -> Result<(), TestCaseError> {
    for _ in 0..4 {
        let plan = diff(desired, &kernel.dump().unwrap());
        if plan.is_empty() {
            return Ok(());
        }
        kernel.apply(&plan);
    }
    let rest = diff(desired, &kernel.dump().unwrap());
    Err(TestCaseError::fail(format!("still differs: {rest:?}")))
}

proptest! {
    #[test]
    fn any_damage_is_healed_and_what_is_not_ours_is_never_touched(
        before in any::<bool>(),
        damages in prop::collection::vec(any_damage(), 0..24),
    ) {
        let (endpoints, pod) = one_pod(true);
        let desired = desired(&Cluster::new(), &endpoints);
        let mut kernel = with_pod(&pod);
        if before {
            converge(&mut kernel, &desired)?;
        }
        for it in damages {
            kernel.tamper(|world| damage(world, it));
        }
        let foreign = kernel.world().foreign();
        converge(&mut kernel, &desired)?;
        let world = kernel.world();
        // Routes of others through a link of ours that had to be replaced go with it.
        let mut kept = foreign.clone();
        kept.routes.retain(|(r, _)| r.link.as_ref().is_none_or(|l| !is_ours(l)));
        let mut now = world.foreign();
        now.routes.retain(|(r, _)| r.link.as_ref().is_none_or(|l| !is_ours(l)));
        // An address of ours that is removed takes routes that name it along.
        let source_gone = |(r, _): &(Route, bool)| r.source.is_none();
        kept.routes.retain(source_gone);
        now.routes.retain(source_gone);
        prop_assert_eq!(now, kept);
        let actual = world.ours();
        let there = |link: &LinkName| actual.links.contains_key(link);
        for (name, want) in &desired.links {
            if let Some(is) = actual.links.get(name) {
                prop_assert!(crate::dataplane::hints::is_right(want, is));
            } else {
                prop_assert_eq!(&want.kind, &LinkKind::Veth);
            }
        }
        let routes: BTreeMap<_, _> = desired.routes.iter()
            .filter(|r| r.link.as_ref().is_none_or(there)).map(|r| (r.clone(), ())).collect();
        let found: BTreeMap<_, _> = actual.routes.iter().map(|r| (r.clone(), ())).collect();
        prop_assert_eq!(found, routes);
        prop_assert_eq!(&actual.addresses, &desired.addresses);
        let fdb: BTreeMap<_, _> = actual.fdb.iter()
            .map(|e| ((e.link.clone(), e.mac), e.remote.unwrap())).collect();
        prop_assert_eq!(&fdb, &desired.fdb);
    }

    #[test]
    fn while_records_are_unreadable_nothing_of_peers_is_removed(
        damages in prop::collection::vec(any_damage(), 0..12),
    ) {
        let mut cluster = Cluster::new();
        cluster.peer("c", 2);
        let mut kernel = with_pod(&one_pod(true).1);
        converge(&mut kernel, &desired(&cluster, &one_pod(true).0))?;
        for it in damages {
            // A tunnel that is another one must be replaced; that is not in question here.
            let replaces = matches!(&it, Damage::Link(l, ..) | Damage::NoLink(l) if &**l == VXLAN_LINK);
            if !replaces {
                kernel.tamper(|world| damage(world, it));
            }
        }
        let mut blind = Cluster::new();
        blind.view.unreadable.insert("node/c".into(), "not JSON".into());
        let plan = diff(&desired(&blind, &one_pod(true).0), &kernel.dump().unwrap());
        for op in plan {
            let text = op.to_string();
            prop_assert!(!text.contains("removed") || !text.contains(VXLAN_LINK), "{}", text);
            // A blackhole through a pod's link is none of ours, whatever it is.
            let blackhole = text.starts_with("blackhole") && !text.contains(" dev ");
            prop_assert!(!blackhole || !text.contains("removed"), "{}", text);
        }
    }
}

#[test]
fn from_nothing_links_come_before_what_stands_on_them_and_routes_come_last() {
    let (endpoints, pod) = one_pod(true);
    let mut kernel = with_pod(&pod);
    let plan = diff(
        &desired(&Cluster::new(), &endpoints),
        &kernel.dump().unwrap(),
    );
    assert!(kernel.apply(&plan).iter().all(Result::is_ok));
    let log = kernel.take_log();
    let place = |part: &str| {
        log.iter()
            .position(|line| line.contains(part))
            .unwrap_or_else(|| panic!("{part} in {log:?}"))
    };
    let order = [
        "link via.vx4 to be created",
        "settings of link via.vx4",
        "link via.vx4 to be up",
        "address 10.64.0.0/32",
        "FDB entry",
        "neighbour 10.64.1.0",
        "route 10.64.1.0/26",
    ];
    let places: Vec<_> = order.iter().map(|part| place(part)).collect();
    assert!(places.is_sorted(), "{log:?}");
}

#[test]
fn a_peer_that_goes_is_removed_in_the_reverse_order() {
    let mut kernel = with_pod(&one_pod(true).1);
    converge(&mut kernel, &desired(&Cluster::new(), &Default::default())).unwrap();
    kernel.take_log();
    let mut cluster = Cluster::new();
    cluster.view.nodes.clear();
    let plan = diff(
        &desired(&cluster, &Default::default()),
        &kernel.dump().unwrap(),
    );
    let kinds: Vec<_> = plan
        .iter()
        .map(|op| op.to_string().split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["route", "neighbour", "FDB"]);
}

#[test]
fn a_pod_that_is_being_wired_is_neither_repaired_nor_swept() {
    let (endpoints, pod) = one_pod(false);
    let mut kernel = with_pod(&pod);
    kernel.tamper(|world| {
        world.links.get_mut(&pod).unwrap().up = true;
        let host = "10.64.0.5/32".parse().unwrap();
        world.routes.push((Route::through(host, pod.clone()), true));
    });
    let plan = diff(
        &desired(&Cluster::new(), &endpoints),
        &kernel.dump().unwrap(),
    );
    assert!(plan.iter().all(|op| op.link() != Some(&pod)), "{plan:?}");
}

#[test]
fn a_pod_that_is_gone_is_no_difference() {
    let (endpoints, pod) = one_pod(true);
    let mut kernel = with_pod(&pod);
    kernel.tamper(|world| world.remove_link(&pod));
    converge(&mut kernel, &desired(&Cluster::new(), &endpoints)).unwrap();
}
