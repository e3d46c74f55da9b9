//! From what should be and what is to what to do: a pure function.
//!
//! It touches only what is ours, and nothing that is right. The order: what is in
//! the way of something new is removed first; then links, settings, addresses,
//! forwarding entries, neighbours and routes are put in place, each standing on the
//! ones before; then what is too much is removed in the reverse order. So traffic
//! meets the new route before the old one goes, and never a route without its
//! neighbour.

use std::collections::BTreeSet;

use super::objects::{
    Actual, ActualLink, Desired, DesiredLink, LinkKind, LinkName, Route, Settings6, is_host_end,
    is_ours, is_tunnel,
};
use super::plan::{Op, Plan};

/// What would make the kernel as it should be. Empty when it is.
pub fn diff(desired: &Desired, actual: &Actual) -> Plan {
    let links = Links::compare(desired, actual);
    let mut plan = links.removals.clone();
    let (early, late): (Vec<_>, Vec<_>) = excess_routes(desired, actual, &links)
        .into_iter()
        .partition(|old| in_the_way(old, desired));
    plan.extend(early.into_iter().map(Op::RemoveRoute));
    plan.extend(links.repairs.iter().cloned());
    put_objects(desired, actual, &links, &mut plan);
    plan.extend(late.into_iter().map(Op::RemoveRoute));
    remove_objects(desired, actual, &links, &mut plan);
    plan.extend(links.late_removals);
    plan
}

/// What happens to links, which decides about all that stands on them.
#[derive(Default)]
struct Links {
    removals: Plan,
    /// Tunnels of another backend: nothing takes their name, and they carry until
    /// their successors do.
    late_removals: Plan,
    repairs: Plan,
    /// Links that go: what stands on them goes with them.
    going: BTreeSet<LinkName>,
    /// Host ends that are gone with their pods: nothing can be put on them.
    missing: BTreeSet<LinkName>,
}

impl Links {
    fn compare(desired: &Desired, actual: &Actual) -> Self {
        let mut links = Self::default();
        for (name, is) in &actual.links {
            if desired.left_alone.contains(name) || !is_ours(name) {
                continue;
            }
            match desired.links.get(name) {
                Some(want) if same_link(&want.kind, &is.kind) => {
                    repair(name, want, is, &mut links.repairs);
                    continue;
                }
                // Without all records nobody can say that the tunnel is too much.
                None if desired.incomplete && is_tunnel(name) => continue,
                _ => {}
            }
            let removals = if is_tunnel(name) && !desired.links.contains_key(name) {
                &mut links.late_removals
            } else {
                &mut links.removals
            };
            removals.push(Op::RemoveLink {
                link: name.clone(),
                index: is.index,
            });
            links.going.insert(name.clone());
        }
        for (name, want) in &desired.links {
            if actual.links.contains_key(name) && !links.going.contains(name) {
                continue;
            }
            if let LinkKind::Vxlan(_) | LinkKind::Ipip(_) = want.kind {
                links.repairs.push(Op::CreateTunnel {
                    link: name.clone(),
                    kind: want.kind.clone(),
                    mac: want.mac,
                    mtu: want.mtu,
                });
                // All before the link is up, so that no packet meets the defaults.
                configure(name, want, &mut links.repairs);
                refuse_ra(name, &mut links.repairs);
                no_addresses(name, &mut links.repairs);
                links.repairs.push(Op::SetLink {
                    link: name.clone(),
                    mac: None,
                    mtu: None,
                });
            } else {
                links.missing.insert(name.clone());
            }
        }
        links
    }

    /// Whether objects on `link` are looked at at all.
    fn concerns(&self, desired: &Desired, link: &LinkName) -> bool {
        !self.missing.contains(link) && !desired.left_alone.contains(link)
    }
}

/// Whether the one can be made the other without being created anew.
fn same_link(want: &LinkKind, is: &LinkKind) -> bool {
    want == is
}

fn repair(name: &LinkName, want: &DesiredLink, is: &ActualLink, plan: &mut Plan) {
    if is.settings != Some(want.settings) {
        configure(name, want, plan);
    }
    if let Some(Settings6 {
        accept_ra,
        generates_addresses,
    }) = is.settings6
    {
        if accept_ra {
            refuse_ra(name, plan);
        }
        if generates_addresses {
            no_addresses(name, plan);
        }
    }
    let mac = want.mac.filter(|mac| is.mac != Some(*mac));
    let mtu = (is.mtu != want.mtu).then_some(want.mtu);
    if mac.is_some() || mtu.is_some() || !is.up {
        plan.push(Op::SetLink {
            link: name.clone(),
            mac,
            mtu,
        });
    }
}

fn configure(name: &LinkName, want: &DesiredLink, plan: &mut Plan) {
    plan.push(Op::Configure {
        link: name.clone(),
        settings: want.settings,
    });
}

fn refuse_ra(name: &LinkName, plan: &mut Plan) {
    plan.push(Op::RefuseRouterAdvertisements { link: name.clone() });
}

fn no_addresses(name: &LinkName, plan: &mut Plan) {
    plan.push(Op::GenerateNoAddress { link: name.clone() });
}

fn put_objects(desired: &Desired, actual: &Actual, links: &Links, plan: &mut Plan) {
    for link in &desired.forwarding {
        // One that is missing comes back with an event.
        if actual.foreign.get(link).is_some_and(|is| !is.forwarding) {
            plan.push(Op::Forward { link: link.clone() });
        }
    }
    // What stands on a link that goes counts as gone.
    let there = |link: &LinkName| !links.going.contains(link);
    for address in &desired.addresses {
        let stands = actual.addresses.contains(address) && there(&address.link);
        if !stands && links.concerns(desired, &address.link) {
            plan.push(Op::AddAddress(address.clone()));
        }
    }
    let right: BTreeSet<_> = actual
        .fdb
        .iter()
        .filter(|e| e.plain && there(&e.link))
        .map(|e| (&e.link, e.mac, e.remote))
        .collect();
    for ((link, mac), remote) in &desired.fdb {
        if !right.contains(&(link, *mac, Some(*remote))) && links.concerns(desired, link) {
            plan.push(Op::PutFdb {
                link: link.clone(),
                mac: *mac,
                remote: *remote,
            });
        }
    }
    for (key, mac) in &desired.neighbours {
        let (link, address) = key;
        let stands = actual.neighbours.get(key) == Some(mac) && there(link);
        if !stands && links.concerns(desired, link) {
            plan.push(Op::PutNeighbour {
                link: link.clone(),
                address: *address,
                mac: *mac,
            });
        }
    }
    for route in &desired.routes {
        let stands = actual.routes.contains(route) && route.link.as_ref().is_none_or(there);
        let possible = route
            .link
            .as_ref()
            .is_none_or(|link| links.concerns(desired, link));
        if !stands && possible {
            plan.push(Op::AddRoute(route.clone()));
        }
    }
}

/// Whether a route must go before its successor comes: otherwise the kernel, asked
/// to delete it, could take the successor instead.
fn in_the_way(old: &Route, desired: &Desired) -> bool {
    old.odd
        || desired
            .routes
            .range(Route::least_to(old.destination)..)
            .take_while(|new| new.destination == old.destination)
            .any(|new| old.deletion_fits(new))
}

fn excess_routes(desired: &Desired, actual: &Actual, links: &Links) -> Vec<Route> {
    actual
        .routes
        .iter()
        .filter(|route| !desired.routes.contains(route))
        .filter(|route| match &route.link {
            Some(link) if links.going.contains(link) => false,
            Some(link) if desired.left_alone.contains(link) => false,
            // Routes through host ends hang on the ledger, all others on records.
            Some(link) if is_host_end(link) => true,
            _ => !desired.incomplete,
        })
        .cloned()
        .collect()
}

fn remove_objects(desired: &Desired, actual: &Actual, links: &Links, plan: &mut Plan) {
    let removable = |link: &LinkName| {
        !links.going.contains(link)
            && !desired.left_alone.contains(link)
            && (is_host_end(link) || !desired.incomplete)
    };
    for key in actual.neighbours.keys() {
        if !desired.neighbours.contains_key(key) && removable(&key.0) {
            plan.push(Op::RemoveNeighbour {
                link: key.0.clone(),
                address: key.1,
            });
        }
    }
    for entry in &actual.fdb {
        // A desired MAC's other remote has been replaced in place.
        let key = (entry.link.clone(), entry.mac);
        if !desired.fdb.contains_key(&key) && removable(&entry.link) {
            plan.push(Op::RemoveFdb(entry.clone()));
        }
    }
    for address in &actual.addresses {
        if !desired.addresses.contains(address) && removable(&address.link) {
            plan.push(Op::RemoveAddress(address.clone()));
        }
    }
}
