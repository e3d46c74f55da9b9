//! One block of this node: where its rotation stands and what rests in it.
//!
//! Owned by the [`AddressManager`](super::AddressManager), which knows what is in
//! use and what is reserved; this file only keeps the order of reuse.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::BlockService;
use crate::intervals::Intervals;
use crate::{BlockUsage, Cidr, Family, cidr};

/// When an address was released: boot-time milliseconds, then the order of releases.
pub(super) type Released = (u64, u64);

/// A block that the node owns.
#[derive(Debug, Clone)]
pub(super) struct OwnBlock {
    cidr: Cidr,
    pub(super) service: BlockService,
    /// Offset at which the walk over never-used addresses began.
    origin: u128,
    /// How far that walk has come; the block's size when it is over. What it has
    /// passed is in use, resting or reserved.
    walked: u128,
    resting: BTreeMap<Released, IpAddr>,
    released_at: BTreeMap<IpAddr, Released>,
    /// Addresses that are not reserved.
    usable: u128,
    used: u32,
    used_reserved: u32,
}

impl OwnBlock {
    pub(super) fn new(cidr: Cidr, service: BlockService) -> Self {
        Self {
            cidr,
            service,
            origin: 0,
            walked: 0,
            resting: BTreeMap::new(),
            released_at: BTreeMap::new(),
            usable: cidr.size(),
            used: 0,
            used_reserved: 0,
        }
    }

    pub(super) fn cidr(&self) -> &Cidr {
        &self.cidr
    }

    pub(super) fn serves(&self, family: Family) -> bool {
        self.service == BlockService::Serving && self.cidr.family() == family
    }

    pub(super) fn usage(&self) -> BlockUsage {
        let taken = u128::from(self.used.saturating_sub(self.used_reserved));
        BlockUsage {
            used: self.used,
            free: u32::try_from(self.usable.saturating_sub(taken)).unwrap_or(u32::MAX),
        }
    }

    /// Forgets everything but the walk's place, which becomes a new origin.
    pub(super) fn forget(&mut self) {
        let mut new = Self::new(self.cidr, self.service);
        if self.walked < self.cidr.size() {
            new.origin = self.offset_at(self.walked);
        }
        *self = new;
    }

    pub(super) fn set_usable(&mut self, reserved: &Intervals) {
        let inside = reserved.count_within(self.cidr.first_bits(), self.cidr.last_bits());
        self.usable = self.cidr.size().saturating_sub(inside);
    }

    /// Begins the walk behind `address`.
    pub(super) fn begin_behind(&mut self, address: IpAddr) {
        let offset = cidr::to_bits(address).saturating_sub(self.cidr.first_bits());
        self.origin = (offset + 1) % self.cidr.size();
        self.walked = 0;
    }

    /// `address` is in use from now on.
    pub(super) fn occupied(&mut self, address: IpAddr, reserved: bool) {
        if let Some(order) = self.released_at.remove(&address) {
            self.resting.remove(&order);
        }
        self.used += 1;
        self.used_reserved += u32::from(reserved);
    }

    /// One address fewer is in use.
    pub(super) fn freed(&mut self, reserved: bool) {
        self.used = self.used.saturating_sub(1);
        self.used_reserved = self.used_reserved.saturating_sub(u32::from(reserved));
    }

    /// `address` rests since `order`.
    pub(super) fn rest(&mut self, address: IpAddr, order: Released) {
        if let Some(before) = self.released_at.insert(address, order) {
            self.resting.remove(&before);
        }
        self.resting.insert(order, address);
    }

    /// What rests, with when it was released.
    pub(super) fn released(&self) -> impl Iterator<Item = (IpAddr, u64)> + '_ {
        self.resting
            .iter()
            .map(|(&(at, _), &address)| (address, at))
    }

    /// Since when an address rests, if it does.
    pub(super) fn rests_since(&self, address: IpAddr) -> Option<u64> {
        self.released_at.get(&address).map(|&(at, _)| at)
    }

    /// When those were released that rest since `since` or later, the oldest first.
    pub(super) fn released_since(&self, since: u64) -> impl Iterator<Item = u64> + '_ {
        self.resting.range((since, 0)..).map(|(&(at, _), _)| at)
    }

    /// The address that rests the longest.
    pub(super) fn longest_rested(&self) -> Option<(Released, IpAddr)> {
        self.resting
            .first_key_value()
            .map(|(&order, &address)| (order, address))
    }

    /// The next address that was never used. The walk only goes forward, so that
    /// all calls together look at each address once.
    pub(super) fn next_fresh(
        &mut self,
        reserved: &Intervals,
        in_use: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let size = self.cidr.size();
        while self.walked < size {
            let offset = self.offset_at(self.walked);
            let bits = self.cidr.first_bits() + offset;
            if let Some(end) = reserved.end_of_run(bits) {
                // Over the whole reserved range at once, but not over the wrap.
                let skip = end.min(self.cidr.last_bits()) - bits + 1;
                self.walked = self.walked.saturating_add(skip);
                continue;
            }
            let address = self.cidr.family().address(bits);
            if !in_use(address) && !self.released_at.contains_key(&address) {
                return Some(address);
            }
            self.walked += 1;
        }
        None
    }

    fn offset_at(&self, walked: u128) -> u128 {
        let until_wrap = self.cidr.size() - self.origin;
        if walked < until_wrap {
            self.origin + walked
        } else {
            walked - until_wrap
        }
    }
}
