//! A kernel in memory for tests, with the real one's awkward habits: what stands on a
//! link goes with it and without a word, a new MAC flushes neighbours, a deletion
//! takes the first route that fits. It can be told to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::host::Host;
use super::kernel::{Kernel, KernelError};
use super::objects::{
    Actual, ActualLink, Address, FdbEntry, ForeignLink, LinkKind, LinkName, NeighbourKey, Route,
    Settings, Settings6, is_ours,
};
use super::plan::Op;
use super::rivals::ForeignRoute;
use viaduct_model::MacAddr;

/// All that is in it, ours or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) links: BTreeMap<LinkName, ActualLink>,
    pub(crate) addresses: BTreeSet<Address>,
    /// In the kernel's order: of one destination, the first is used. Each with
    /// whether it carries our protocol number.
    pub(crate) routes: Vec<(Route, bool)>,
    pub(crate) neighbours: BTreeMap<NeighbourKey, MacAddr>,
    pub(crate) fdb: BTreeSet<FdbEntry>,
    pub(crate) host: Host,
    next_index: u32,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Changes whose description contains any of these fail.
    pub(crate) refuse: Vec<String>,
    /// The change with this number, counted from 0 over all, fails.
    pub(crate) refuse_nth: Option<usize>,
    /// Changes whose description contains any of these are said to be done and are not.
    pub(crate) swallow: Vec<String>,
    /// That many dumps fail, as after a lost answer.
    pub(crate) blind: usize,
}

#[derive(Debug, Default)]
struct Inner {
    world: World,
    faults: Faults,
    log: Vec<String>,
    dumps: usize,
    surveys: usize,
}

/// A handle to the kernel; all copies are the same kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeKernel(Arc<Mutex<Inner>>);

impl FakeKernel {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panicked in it")
    }

    /// A kernel that holds `world`.
    pub(crate) fn with(world: World) -> Self {
        let kernel = Self::default();
        kernel.inner().world = world;
        kernel
    }

    /// Changes the world behind the reconciler's back.
    pub(crate) fn tamper(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.inner().world);
    }

    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.inner().faults);
    }

    pub(crate) fn world(&self) -> World {
        self.inner().world.clone()
    }

    /// The changes asked for so far, in order; forgets them.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().log)
    }

    pub(crate) fn dumps(&self) -> usize {
        self.inner().dumps
    }

    /// How often all routes of others were listed.
    pub(crate) fn surveys(&self) -> usize {
        self.inner().surveys
    }
}

impl Kernel for FakeKernel {
    fn dump(&mut self) -> Result<Actual, KernelError> {
        let mut inner = self.inner();
        inner.dumps += 1;
        if let Some(rest) = inner.faults.blind.checked_sub(1) {
            inner.faults.blind = rest;
            return Err(KernelError::Refused("No buffer space available".into()));
        }
        Ok(inner.world.ours())
    }

    fn foreign_routes(&mut self) -> Result<Vec<ForeignRoute>, KernelError> {
        let mut inner = self.inner();
        inner.surveys += 1;
        let mut ours = BTreeSet::new();
        let mut foreign = Vec::new();
        for (route, is_ours) in &inner.world.routes {
            if *is_ours {
                ours.insert(route.destination);
            } else {
                foreign.push(ForeignRoute {
                    route: route.clone(),
                    protocol: 4,
                    first: !ours.contains(&route.destination),
                });
            }
        }
        Ok(foreign)
    }

    fn apply(&mut self, plan: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        plan.iter()
            .map(|op| {
                let text = op.to_string();
                let number = inner.log.len();
                inner.log.push(text.clone());
                let named = |parts: &[String]| parts.iter().any(|part| text.contains(part));
                if named(&inner.faults.refuse) || inner.faults.refuse_nth == Some(number) {
                    return Err(KernelError::Refused("told to fail".into()));
                }
                if named(&inner.faults.swallow) {
                    return Ok(());
                }
                inner.world.change(op)
            })
            .collect()
    }
}

impl World {
    /// What a dump lists.
    pub(crate) fn ours(&self) -> Actual {
        let ours = |link: &LinkName| is_ours(link);
        let links: BTreeMap<_, _> = self
            .links
            .iter()
            .filter(|(name, _)| ours(name))
            .map(|(name, link)| (name.clone(), link.clone()))
            .collect();
        Actual {
            host: self.host,
            links,
            addresses: self
                .addresses
                .iter()
                .filter(|a| ours(&a.link))
                .cloned()
                .collect(),
            routes: self
                .routes
                .iter()
                .filter(|(_, ours)| *ours)
                .map(|(route, _)| route.clone())
                .collect(),
            neighbours: self
                .neighbours
                .iter()
                .filter(|((link, _), _)| ours(link))
                .map(|(key, mac)| (key.clone(), *mac))
                .collect(),
            fdb: self.fdb.iter().filter(|e| ours(&e.link)).cloned().collect(),
            foreign: self
                .links
                .iter()
                .filter(|(name, _)| !ours(name))
                .filter_map(|(name, link)| {
                    let foreign = ForeignLink {
                        index: link.index,
                        forwarding: link.settings?.forwarding,
                    };
                    Some((name.clone(), foreign))
                })
                .collect(),
        }
    }

    /// What must never be touched.
    pub(crate) fn foreign(&self) -> World {
        let foreign = |link: &LinkName| !is_ours(link);
        let mut world = self.clone();
        world.next_index = 0;
        world.links.retain(|name, _| foreign(name));
        world.addresses.retain(|a| foreign(&a.link));
        world.routes.retain(|(_, ours)| !ours);
        world.neighbours.retain(|(link, _), _| foreign(link));
        world.fdb.retain(|e| foreign(&e.link));
        world
    }

    /// Adds a link as the kernel makes them: down and with its defaults.
    pub(crate) fn add_link(&mut self, name: &str, kind: LinkKind) -> &mut ActualLink {
        self.next_index += 1;
        let index = 100 + self.next_index;
        self.links.entry(name.into()).or_insert(ActualLink {
            index,
            kind,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            mtu: 1500,
            up: false,
            settings: Some(Settings {
                forwarding: false,
                rp_filter: 0,
                proxy_arp: false,
            }),
            settings6: Some(Settings6 {
                accept_ra: true,
                generates_addresses: true,
            }),
        })
    }

    /// Removes a link and all that stands on it.
    pub(crate) fn remove_link(&mut self, name: &LinkName) {
        self.links.remove(name);
        self.addresses.retain(|a| a.link != *name);
        self.neighbours.retain(|(link, _), _| link != name);
        self.fdb.retain(|e| e.link != *name);
        self.routes.retain(|(r, _)| r.link.as_ref() != Some(name));
    }

    /// Takes a link down; its routes and neighbours go without a word.
    pub(crate) fn down(&mut self, name: &LinkName) {
        if let Some(link) = self.links.get_mut(name) {
            link.up = false;
        }
        self.neighbours.retain(|(link, _), _| link != name);
        self.routes.retain(|(r, _)| r.link.as_ref() != Some(name));
    }

    fn link(&mut self, name: &LinkName) -> Result<&mut ActualLink, KernelError> {
        self.links
            .get_mut(name)
            .ok_or_else(|| KernelError::NoLink(name.clone()))
    }

    fn change(&mut self, op: &Op) -> Result<(), KernelError> {
        let refused = |why: &str| Err(KernelError::Refused(why.into()));
        match op {
            Op::RemoveLink { link, index } => {
                if self.links.get(link).is_some_and(|l| l.index == *index) {
                    self.remove_link(link);
                }
            }
            Op::CreateTunnel {
                link,
                kind,
                mac,
                mtu,
            } => {
                let rival = |l: &ActualLink| match (&l.kind, kind) {
                    (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => (a.vni, a.port) == (b.vni, b.port),
                    (LinkKind::Ipip(a), LinkKind::Ipip(b)) => {
                        (a.local, a.remote) == (b.local, b.remote)
                    }
                    _ => false,
                };
                if self.links.contains_key(link) || self.links.values().any(rival) {
                    return refused("File exists");
                }
                let new = self.add_link(link, kind.clone());
                new.mac = *mac;
                new.mtu = *mtu;
            }
            Op::Forward { link } => {
                if let Some(settings) = &mut self.link(link)?.settings {
                    settings.forwarding = true;
                }
            }
            Op::Configure { link, settings } => self.link(link)?.settings = Some(*settings),
            Op::RefuseRouterAdvertisements { link } => {
                if let Some(v6) = &mut self.link(link)?.settings6 {
                    v6.accept_ra = false;
                }
            }
            Op::GenerateNoAddress { link } => {
                if let Some(v6) = &mut self.link(link)?.settings6 {
                    v6.generates_addresses = false;
                }
            }
            Op::SetLink { link, mac, mtu } => {
                let it = self.link(link)?;
                it.up = true;
                it.mtu = mtu.unwrap_or(it.mtu);
                if let Some(mac) = mac {
                    it.mac = Some(*mac);
                    self.neighbours.retain(|(on, _), _| on != link);
                }
            }
            Op::AddAddress(address) => {
                self.link(&address.link)?;
                self.addresses.insert(address.clone());
            }
            Op::RemoveAddress(address) => {
                self.addresses.remove(address);
                self.routes
                    .retain(|(r, _)| r.source != Some(address.address));
            }
            Op::PutFdb { link, mac, remote } => {
                self.link(link)?;
                self.fdb.retain(|e| e.link != *link || e.mac != *mac);
                self.fdb.insert(FdbEntry {
                    link: link.clone(),
                    mac: *mac,
                    remote: Some(*remote),
                    plain: true,
                });
            }
            Op::RemoveFdb(entry) => {
                self.fdb.retain(|e| {
                    e.link != entry.link
                        || e.mac != entry.mac
                        || entry.plain && e.remote != entry.remote
                });
            }
            Op::PutNeighbour { link, address, mac } => {
                if !self.link(link)?.up {
                    return refused("Network is down");
                }
                self.neighbours.insert((link.clone(), *address), *mac);
            }
            Op::RemoveNeighbour { link, address } => {
                self.neighbours.remove(&(link.clone(), *address));
            }
            Op::AddRoute(route) => return self.add_route(route),
            Op::RemoveRoute(route) => {
                let first = self
                    .routes
                    .iter()
                    .position(|(r, ours)| *ours && route.deletion_fits(r));
                if let Some(first) = first {
                    self.routes.remove(first);
                }
            }
        }
        Ok(())
    }

    fn add_route(&mut self, route: &Route) -> Result<(), KernelError> {
        let refused = |why: &str| Err(KernelError::Refused(why.into()));
        if let Some(link) = &route.link
            && !self.link(link)?.up
        {
            return refused("Device is not up");
        }
        if let Some(source) = route.source
            && !self.addresses.iter().any(|a| a.address == source)
        {
            return refused("Invalid prefsrc address");
        }
        if !self.routes.iter().any(|(r, ours)| *ours && r == route) {
            self.routes.insert(0, (route.clone(), true));
        }
        Ok(())
    }
}
