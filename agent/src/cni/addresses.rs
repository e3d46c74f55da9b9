//! The address manager as the ledger's owner uses it: with the node's blocks fed
//! in and the boot-time clock read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use viaduct_model::{
    AddressManager, AllocateError, AttachmentId, BlockService, BlockState, BlockUsage, Cidr,
    Endpoint, Family, Tenure,
};

use crate::clock::now_ms;
use crate::memory::Memory;
use crate::state::NodeState;

/// The addresses of this node's pods.
#[derive(Debug)]
pub(super) struct Addresses {
    manager: AddressManager,
    blocks: BTreeMap<Cidr, BlockService>,
    /// Until when each block serves by our hold on it; `None`: nobody keeps count, as in
    /// tests.
    terms: Option<BTreeMap<Cidr, Option<u64>>>,
    /// The round of the hold that `terms` are of.
    heeds: u64,
    keep: Option<IpAddr>,
}

impl Addresses {
    /// Begins with what the ledger holds, and no block.
    pub(super) fn restored<'a>(
        ledger: impl IntoIterator<Item = &'a Endpoint>,
        cool_down: Duration,
    ) -> Self {
        let mut manager = AddressManager::new(cool_down);
        manager.restore(ledger);
        Self {
            manager,
            blocks: BTreeMap::new(),
            terms: None,
            heeds: 0,
            keep: None,
        }
    }

    /// Takes over the hold on the blocks.
    pub(super) fn hold(&mut self, tenure: &Tenure) {
        self.terms = Some(tenure.terms());
        self.heeds = tenure.round();
    }

    /// Takes over the node's blocks and what is reserved; says whether the blocks
    /// changed.
    pub(super) fn adopt(&mut self, state: &NodeState) -> bool {
        let now = now_ms();
        let view = &state.view;
        self.keep = state.local.overlay.map(IpAddr::V4);
        let mut reserved: BTreeSet<Cidr> = view
            .pools
            .values()
            .flat_map(|pool| pool.reserved.iter().copied())
            .collect();
        reserved.extend(state.local.overlay.map(|a| Cidr::host(IpAddr::V4(a))));
        // First: a block must not serve its reserved addresses for a moment.
        self.manager.set_reserved(reserved);

        let blocks: BTreeMap<Cidr, BlockService> = view
            .blocks_of(&state.local.name)
            .map(|block| {
                let active = block.state == BlockState::Active;
                (block.cidr, self.service(active, &block.cidr, now))
            })
            .collect();
        self.replace(blocks, now)
    }

    /// The service of a block that the records or the memory call ours.
    fn service(&self, active: bool, cidr: &Cidr, now: u64) -> BlockService {
        let term = match &self.terms {
            None => Some(u64::MAX),
            Some(terms) => terms.get(cidr).copied().flatten(),
        };
        if active && term.is_some_and(|until| now < until) {
            BlockService::Serving
        } else {
            BlockService::Draining
        }
    }

    /// Takes over a set of blocks. What we hold and no record names is ours still, and
    /// serves nothing.
    fn replace(&mut self, mut blocks: BTreeMap<Cidr, BlockService>, now: u64) -> bool {
        for cidr in self.terms.iter().flat_map(BTreeMap::keys) {
            blocks.entry(*cidr).or_insert(BlockService::Draining);
        }
        if blocks == self.blocks {
            return false;
        }
        self.manager.set_blocks(&blocks, now);
        self.blocks = blocks;
        true
    }

    /// Hands out nothing more from blocks whose term is over. Asked right before each
    /// time, because the machine may have slept until now.
    fn expire(&mut self, now: u64) {
        let Some(terms) = &self.terms else { return };
        for (cidr, service) in &mut self.blocks {
            let over = terms
                .get(cidr)
                .copied()
                .flatten()
                .is_none_or(|until| now >= until);
            if over && *service == BlockService::Serving {
                *service = BlockService::Draining;
                self.manager.put_block(*cidr, BlockService::Draining, now);
            }
        }
    }

    /// Whether addresses of the blocks that these are in may be handed out now.
    pub(super) fn serve(&mut self, addresses: &[IpAddr]) -> bool {
        self.expire(now_ms());
        addresses.iter().all(|address| {
            self.blocks.iter().any(|(block, service)| {
                *service == BlockService::Serving && block.contains(*address)
            })
        })
    }

    /// Blocks that nothing is handed out from.
    pub(super) fn draining(&self) -> BTreeSet<Cidr> {
        let draining = |(_, service): &(&Cidr, &BlockService)| **service == BlockService::Draining;
        self.blocks
            .iter()
            .filter(draining)
            .map(|(cidr, _)| *cidr)
            .collect()
    }

    /// The round of the hold that counts.
    pub(super) fn heeds(&self) -> u64 {
        self.heeds
    }

    /// The node's own address.
    pub(super) fn keep(&self) -> Option<IpAddr> {
        self.keep
    }

    /// Goes by what was remembered until the node's state is known.
    pub(super) fn remember(&mut self, memory: &Memory) {
        self.manager.set_reserved(memory.reserved.clone());
        let now = now_ms();
        let serving = memory.serving.iter().map(|cidr| (true, cidr));
        let draining = memory.draining.iter().map(|cidr| (false, cidr));
        let blocks: BTreeMap<_, _> = serving
            .chain(draining)
            .map(|(active, cidr)| (*cidr, self.service(active, cidr, now)))
            .collect();
        self.replace(blocks, now);
    }

    /// Gives `owner` an IPv4 address, and says when.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn allocate(
        &mut self,
        owner: &AttachmentId,
    ) -> Result<(IpAddr, u64), AllocateError> {
        let now = now_ms();
        self.expire(now);
        let allocation = self.manager.allocate(owner, Family::V4, now)?;
        if allocation.early {
            tracing::warn!(
                attachment = %owner,
                address = %allocation.address,
                "an address is handed out again before it cooled down, for want of any other"
            );
        }
        Ok((allocation.address, now))
    }

    /// Gives `owner` just this address, and says when.
    ///
    /// # Errors
    /// When it is not to be had.
    pub(super) fn take(
        &mut self,
        owner: &AttachmentId,
        address: IpAddr,
    ) -> Result<(IpAddr, u64), AllocateError> {
        let now = now_ms();
        self.expire(now);
        let allocation = self.manager.allocate_exact(owner, address, now)?;
        Ok((allocation.address, now))
    }

    /// Takes back what `owner` has, and says what it was.
    pub(super) fn release(&mut self, owner: &AttachmentId) -> Vec<IpAddr> {
        self.manager.release(owner, now_ms())
    }

    /// How many addresses were handed out before they had cooled down.
    pub(super) fn early_reuses(&self) -> u64 {
        self.manager.early_reuses()
    }

    /// Whether every one of these addresses is in a block that the node owns.
    pub(super) fn are_ours(&self, addresses: &[IpAddr]) -> bool {
        addresses
            .iter()
            .all(|address| self.blocks.keys().any(|block| block.contains(*address)))
    }

    /// The block of ours that an address is in.
    pub(super) fn block_of(&self, address: IpAddr) -> Option<Cidr> {
        self.manager.block_of(address)
    }

    /// Whether `owner` has this address.
    pub(super) fn has(&self, owner: &AttachmentId, address: IpAddr) -> bool {
        self.manager.addresses_of(owner).contains(&address)
    }

    /// Whether an address is never handed out.
    pub(super) fn reserves(&self, address: IpAddr) -> bool {
        self.manager.reserves(address)
    }

    /// When an address was given back, and until when it cools down.
    pub(super) fn rests(&self, address: IpAddr) -> Option<(u64, u64)> {
        self.manager.rests(address)
    }

    /// Until when addresses cool down, by block.
    pub(super) fn cooling(&self) -> BTreeMap<Cidr, Vec<u64>> {
        self.manager.cooling(now_ms())
    }

    /// Used and free addresses by block.
    pub(super) fn usage(&self) -> BTreeMap<Cidr, BlockUsage> {
        self.manager.usage()
    }
}
