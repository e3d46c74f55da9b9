//! A node's pod addresses: which are in use, which come next.
//!
//! An [`AddressManager`] is owned by the agent's CNI server, the one task that
//! allocates and releases. It is told which blocks the node owns and what is in
//! the ledger, and never writes, reads a clock or asks the datastore.
//!
//! Order of reuse: addresses that were never used first, in address order and
//! beginning behind the one allocated last before a restart; then the one that
//! was released the longest ago. An address cools down after its release, so that
//! neither peers' caches nor conntrack entries of its last owner meet the next
//! one; when nothing else is left the one that cooled longest is used early.
//!
//! An address in use stays in use until its owner releases it, also when the
//! block that it is in no longer belongs to the node.

mod block;
mod demand;
mod refusal;
mod reserved;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::{AttachmentId, BlockUsage, Cidr, Endpoint, Family, cidr};
use block::OwnBlock;
use reserved::Reserved;

pub use demand::{Surplus, asks_for, first_usable, surplus_block, wants_blocks, watermark};
pub use refusal::AllocateError;

/// How long a released address rests before it is handed out again.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// What a block of this node may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockService {
    /// Addresses are handed out from it.
    Serving,
    /// Nothing is handed out from it any more: it is being given back, or its
    /// ownership cannot be proved now. Its addresses in use stay.
    Draining,
}

/// An address that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The address.
    pub address: IpAddr,
    /// The owner had it already.
    pub existing: bool,
    /// It had not cooled down, for want of any other.
    pub early: bool,
}

/// Who has an address.
#[derive(Debug, Clone)]
struct Use {
    allocated_at: u64,
    /// One, unless the ledger said something impossible.
    owners: u32,
}

/// The pod addresses of one node.
#[derive(Debug, Clone)]
pub struct AddressManager {
    cool_down_ms: u64,
    blocks: BTreeMap<Cidr, OwnBlock>,
    in_use: BTreeMap<IpAddr, Use>,
    owners: BTreeMap<AttachmentId, Vec<IpAddr>>,
    /// Released addresses outside our blocks, with when, in case the block comes
    /// (back) before they cooled down.
    strays: BTreeMap<IpAddr, u64>,
    reserved: Reserved,
    /// Orders releases within one millisecond.
    releases: u64,
    early_reuses: u64,
}

impl Default for AddressManager {
    fn default() -> Self {
        Self::new(COOL_DOWN)
    }
}

impl AddressManager {
    /// A manager with no block and nothing in use.
    pub fn new(cool_down: Duration) -> Self {
        Self {
            cool_down_ms: u64::try_from(cool_down.as_millis()).unwrap_or(u64::MAX),
            blocks: BTreeMap::new(),
            in_use: BTreeMap::new(),
            owners: BTreeMap::new(),
            strays: BTreeMap::new(),
            reserved: Reserved::default(),
            releases: 0,
            early_reuses: 0,
        }
    }

    /// Takes over what the ledger holds: its addresses are in use. To be called
    /// before anything is allocated; blocks may be added before or after.
    pub fn restore<'a>(&mut self, ledger: impl IntoIterator<Item = &'a Endpoint>) {
        for endpoint in ledger {
            for &address in &endpoint.addresses {
                self.occupy(&endpoint.id, address, endpoint.allocated_at);
            }
        }
        // The rotation goes on behind the most recent allocation, which is only
        // known now for the blocks that were there before.
        self.relearn();
    }

    /// Replaces the set of blocks that the node owns.
    pub fn set_blocks(&mut self, blocks: &BTreeMap<Cidr, BlockService>, now_ms: u64) {
        let gone: Vec<Cidr> = self
            .blocks
            .keys()
            .filter(|block| !blocks.contains_key(block))
            .copied()
            .collect();
        for block in gone {
            self.remove_block(&block, now_ms);
        }
        for (&block, &service) in blocks {
            self.put_block(block, service, now_ms);
        }
    }

    /// Adds a block, or changes whether it serves.
    pub fn put_block(&mut self, block: Cidr, service: BlockService, now_ms: u64) {
        if let Some(own) = self.blocks.get_mut(&block) {
            own.service = service;
            return;
        }
        self.prune_strays(now_ms);
        let mut own = OwnBlock::new(block, service);
        self.learn(&mut own);
        self.blocks.insert(block, own);
    }

    /// Removes a block. Addresses of it that are in use stay in use.
    pub fn remove_block(&mut self, block: &Cidr, now_ms: u64) {
        if let Some(own) = self.blocks.remove(block) {
            self.strays.extend(own.released());
            self.prune_strays(now_ms);
        }
    }

    /// Replaces what is never handed out: the reserved ranges of the pools and
    /// single addresses such as the node's own, as host prefixes.
    pub fn set_reserved(&mut self, reserved: BTreeSet<Cidr>) {
        if self.reserved.replace(reserved) {
            self.relearn();
        }
    }

    /// Gives `owner` an address of `family`: the one that it has, or the next.
    /// `now_ms` is the boot-time clock's.
    ///
    /// # Errors
    /// When no block serves, or all addresses are taken.
    pub fn allocate(
        &mut self,
        owner: &AttachmentId,
        family: Family,
        now_ms: u64,
    ) -> Result<Allocation, AllocateError> {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        if let Some(&address) = self.addresses_of(owner).iter().find(of_family) {
            return Ok(Allocation {
                address,
                existing: true,
                early: false,
            });
        }
        let (address, early) = self.next_address(family, now_ms)?;
        self.occupy(owner, address, now_ms);
        self.early_reuses += u64::from(early);
        Ok(Allocation {
            address,
            existing: false,
            early,
        })
    }

    /// Gives `owner` just this address, if it is in a block that serves and free. One
    /// that cools down is given: who asks for it by name knows what it was.
    ///
    /// # Errors
    /// When it is not to be had, and why.
    pub fn allocate_exact(
        &mut self,
        owner: &AttachmentId,
        address: IpAddr,
        now_ms: u64,
    ) -> Result<Allocation, AllocateError> {
        if self.addresses_of(owner).contains(&address) {
            return Ok(Allocation {
                address,
                existing: true,
                early: false,
            });
        }
        let family = Family::of(address);
        let Some(own) = self
            .blocks
            .values()
            .find(|own| own.serves(family) && own.cidr().contains(address))
        else {
            let blocks = self.serving(family).map(|(block, _)| *block).collect();
            return Err(AllocateError::NotOurs { address, blocks });
        };
        if self.reserved.holds(address) {
            return Err(AllocateError::Reserved { address });
        }
        let early = own
            .rests_since(address)
            .is_some_and(|at| now_ms.saturating_sub(at) < self.cool_down_ms);
        if self.in_use.contains_key(&address) {
            let has = |(_, theirs): &(&AttachmentId, &Vec<IpAddr>)| theirs.contains(&address);
            let owner = self.owners.iter().find(has);
            let owner = owner.map_or_else(|| "unknown".to_owned(), |(id, _)| id.to_string());
            return Err(AllocateError::Taken { address, owner });
        }
        self.occupy(owner, address, now_ms);
        self.early_reuses += u64::from(early);
        Ok(Allocation {
            address,
            existing: false,
            early,
        })
    }

    /// Takes back all addresses of `owner` and says which they were; none when it
    /// is unknown.
    pub fn release(&mut self, owner: &AttachmentId, now_ms: u64) -> Vec<IpAddr> {
        let addresses = self.owners.remove(owner).unwrap_or_default();
        for &address in &addresses {
            let Some(used) = self.in_use.get_mut(&address) else {
                continue;
            };
            used.owners = used.owners.saturating_sub(1);
            if used.owners > 0 {
                continue;
            }
            self.in_use.remove(&address);
            self.freed(address, now_ms);
        }
        addresses
    }

    /// The addresses that `owner` has.
    pub fn addresses_of(&self, owner: &AttachmentId) -> &[IpAddr] {
        self.owners.get(owner).map_or(&[], Vec::as_slice)
    }

    /// Whether anybody has this address.
    pub fn is_in_use(&self, address: IpAddr) -> bool {
        self.in_use.contains_key(&address)
    }

    /// The block of ours that an address is in; the smallest where records overlap.
    pub fn block_of(&self, address: IpAddr) -> Option<Cidr> {
        let holds = |block: &&Cidr| block.contains(address);
        self.blocks.keys().rfind(holds).copied()
    }

    /// Whether an address is never handed out.
    pub fn reserves(&self, address: IpAddr) -> bool {
        self.reserved.holds(address)
    }

    /// When an address that nobody has was given back, if that was since the start, and
    /// until when it cools down.
    pub fn rests(&self, address: IpAddr) -> Option<(u64, u64)> {
        let stray = self.strays.get(&address).copied();
        let in_block = |own: &OwnBlock| own.rests_since(address);
        let since = self.blocks.values().find_map(in_block).or(stray)?;
        Some((since, since.saturating_add(self.cool_down_ms)))
    }

    /// Until when each address cools down that does so at `now_ms`, for every block that has
    /// any. They are among the free ones.
    pub fn cooling(&self, now_ms: u64) -> BTreeMap<Cidr, Vec<u64>> {
        let since = now_ms.saturating_sub(self.cool_down_ms);
        self.blocks
            .iter()
            .map(|(&block, own)| {
                let released = own.released_since(since);
                (
                    block,
                    released
                        .map(|at| at.saturating_add(self.cool_down_ms))
                        .collect(),
                )
            })
            .filter(|(_, until): &(Cidr, Vec<u64>)| !until.is_empty())
            .collect()
    }

    /// Used and free addresses of every block, draining ones included.
    pub fn usage(&self) -> BTreeMap<Cidr, BlockUsage> {
        self.blocks
            .iter()
            .map(|(&block, own)| (block, own.usage()))
            .collect()
    }

    /// Used and free addresses of the blocks that serve.
    pub fn serving_usage(&self, family: Family) -> BTreeMap<Cidr, BlockUsage> {
        self.serving(family)
            .map(|(&block, own)| (block, own.usage()))
            .collect()
    }

    /// How many addresses were handed out before they had cooled down.
    pub fn early_reuses(&self) -> u64 {
        self.early_reuses
    }

    fn next_address(
        &mut self,
        family: Family,
        now_ms: u64,
    ) -> Result<(IpAddr, bool), AllocateError> {
        let Self {
            blocks,
            in_use,
            reserved,
            ..
        } = self;
        let reserved = reserved.of(family);
        for own in blocks.values_mut().filter(|own| own.serves(family)) {
            if let Some(address) = own.next_fresh(reserved, |a| in_use.contains_key(&a)) {
                return Ok((address, false));
            }
        }
        let rested = blocks
            .values()
            .filter(|own| own.serves(family))
            .filter_map(OwnBlock::longest_rested)
            .min();
        if let Some(((released_at, _), address)) = rested {
            let early = now_ms.saturating_sub(released_at) < self.cool_down_ms;
            return Ok((address, early));
        }
        Err(self.refusal(family))
    }

    fn refusal(&self, family: Family) -> AllocateError {
        let owned = self.blocks.keys().filter(|b| b.family() == family).count();
        let serving: Vec<_> = self.serving(family).collect();
        match (owned, serving.len()) {
            (0, _) => AllocateError::NoBlock { family },
            (blocks, 0) => AllocateError::AllDraining { family, blocks },
            (_, blocks) => AllocateError::Full {
                family,
                blocks,
                used: serving
                    .iter()
                    .map(|(_, own)| u64::from(own.usage().used))
                    .sum(),
            },
        }
    }

    fn occupy(&mut self, owner: &AttachmentId, address: IpAddr, allocated_at: u64) {
        let owned = self.owners.entry(owner.clone()).or_default();
        if owned.contains(&address) {
            return;
        }
        owned.push(address);
        self.strays.remove(&address);
        let used = self.in_use.entry(address).or_insert(Use {
            allocated_at,
            owners: 0,
        });
        used.owners += 1;
        used.allocated_at = used.allocated_at.max(allocated_at);
        if used.owners == 1 {
            let reserved = self.reserved.holds(address);
            for own in self.blocks_of(address) {
                own.occupied(address, reserved);
            }
        }
    }

    /// Lets an address rest that nobody has any more.
    fn freed(&mut self, address: IpAddr, now_ms: u64) {
        let reserved = self.reserved.holds(address);
        self.releases += 1;
        let order = (now_ms, self.releases);
        let mut ours = false;
        for own in self.blocks_of(address) {
            own.freed(reserved);
            if !reserved {
                own.rest(address, order);
                ours = true;
            }
        }
        if !ours {
            self.prune_strays(now_ms);
            self.strays.insert(address, now_ms);
        }
    }

    /// Builds every block's bookkeeping anew, after what is reserved or restored
    /// changed; nothing about use or rest is forgotten.
    fn relearn(&mut self) {
        for (block, mut own) in std::mem::take(&mut self.blocks) {
            self.strays.extend(own.released());
            own.forget();
            self.learn(&mut own);
            self.blocks.insert(block, own);
        }
    }

    /// Tells a block what is in use, resting and reserved in it.
    fn learn(&mut self, own: &mut OwnBlock) {
        let (first, last) = (own.cidr().first(), own.cidr().last());
        let reserved = self.reserved.of(own.cidr().family());
        own.set_usable(reserved);
        let mut newest: Option<(u64, IpAddr)> = None;
        for (&address, used) in self.in_use.range(first..=last) {
            own.occupied(
                address,
                reserved.end_of_run(cidr::to_bits(address)).is_some(),
            );
            newest = newest.max(Some((used.allocated_at, address)));
        }
        if let Some((_, address)) = newest {
            own.begin_behind(address);
        }
        let resting: Vec<(IpAddr, u64)> = self
            .strays
            .range(first..=last)
            .filter(|(address, _)| !self.reserved.holds(**address))
            .map(|(&address, &at)| (address, at))
            .collect();
        for (address, at) in resting {
            self.strays.remove(&address);
            self.releases += 1;
            own.rest(address, (at, self.releases));
        }
    }

    /// Forgets what has cooled down outside our blocks.
    fn prune_strays(&mut self, now_ms: u64) {
        let cool_down = self.cool_down_ms;
        self.strays
            .retain(|_, at| now_ms.saturating_sub(*at) < cool_down);
    }

    fn serving(&self, family: Family) -> impl Iterator<Item = (&Cidr, &OwnBlock)> {
        self.blocks
            .iter()
            .filter(move |(_, own)| own.serves(family))
    }

    /// Our blocks that hold `address`. One at most, unless the store holds blocks
    /// that overlap; then all must know, so that none hands it out again.
    fn blocks_of(&mut self, address: IpAddr) -> impl Iterator<Item = &mut OwnBlock> {
        self.blocks
            .values_mut()
            .filter(move |own| own.cidr().contains(address))
    }
}

#[cfg(test)]
mod tests;
