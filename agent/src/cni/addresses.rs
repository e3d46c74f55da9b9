//! The address manager as the ledger's owner uses it: with the node's blocks fed
//! in and the boot-time clock read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use viaduct_model::{
    AddressManager, AllocateError, AttachmentId, BlockService, BlockState, BlockUsage, Cidr,
    Endpoint, Family,
};

use crate::memory::Memory;
use crate::state::NodeState;

/// The addresses of this node's pods.
#[derive(Debug)]
pub(super) struct Addresses {
    manager: AddressManager,
    blocks: BTreeMap<Cidr, BlockService>,
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
        }
    }

    /// Takes over the node's blocks and what is reserved; says whether the blocks
    /// changed.
    pub(super) fn adopt(&mut self, state: &NodeState) -> bool {
        let view = &state.view;
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
                let service = match block.state {
                    BlockState::Active => BlockService::Serving,
                    BlockState::Releasing | BlockState::Quarantined => BlockService::Draining,
                };
                (block.cidr, service)
            })
            .collect();
        if blocks == self.blocks {
            return false;
        }
        self.manager.set_blocks(&blocks, now_ms());
        self.blocks = blocks;
        true
    }

    /// Goes by what was remembered until the node's state is known.
    pub(super) fn remember(&mut self, memory: &Memory) {
        self.manager.set_reserved(memory.reserved.clone());
        let with = |service| move |cidr: &Cidr| (*cidr, service);
        let serving = memory.serving.iter().map(with(BlockService::Serving));
        let draining = memory.draining.iter().map(with(BlockService::Draining));
        let blocks: BTreeMap<_, _> = serving.chain(draining).collect();
        self.manager.set_blocks(&blocks, now_ms());
        self.blocks = blocks;
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

    /// Used and free addresses by block.
    pub(super) fn usage(&self) -> BTreeMap<Cidr, BlockUsage> {
        self.manager.usage()
    }
}

/// Milliseconds of the boot-time clock, which counts sleep and never goes back.
fn now_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_millis()).ok())
        .unwrap_or(0)
}
