//! Properties of the address manager over arbitrary histories: what is in use is
//! never handed out again, what is reserved never at all, and nothing rests too
//! briefly while something else is free.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use viaduct_model::addresses::COOL_DOWN;
use viaduct_model::{
    AddressManager, AllocateError, AttachmentId, BlockService, Cidr, Endpoint, Family,
};

const BLOCKS: [&str; 4] = ["10.0.0.0/29", "10.0.0.8/29", "10.0.9.0/28", "10.0.0.16/30"];
const RESERVED: [&str; 3] = ["10.0.0.0/32", "10.0.0.4/31", "10.0.9.4/30"];

#[derive(Debug, Clone)]
enum Op {
    Allocate(u32),
    Release(u32),
    Put(usize, bool),
    Remove(usize),
    Reserve(Vec<usize>),
    Wait(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u32..40).prop_map(Op::Allocate),
        6 => (0u32..40).prop_map(Op::Release),
        2 => (0..BLOCKS.len(), prop::bool::weighted(0.8)).prop_map(|(b, s)| Op::Put(b, s)),
        1 => (0..BLOCKS.len()).prop_map(Op::Remove),
        1 => prop::collection::vec(0..RESERVED.len(), 0..3).prop_map(Op::Reserve),
        4 => (0u64..20_000).prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ]
}

fn id(n: u32) -> AttachmentId {
    AttachmentId::new(&format!("c{n}"), "eth0").unwrap()
}

fn cidr(s: &str) -> Cidr {
    s.parse().unwrap()
}

/// What must be so, written down the dull way.
#[derive(Default)]
struct Truth {
    now_ms: u64,
    blocks: BTreeMap<Cidr, BlockService>,
    reserved: BTreeSet<Cidr>,
    in_use: BTreeMap<IpAddr, u32>,
    allocated_at: BTreeMap<u32, u64>,
    /// When an address was released last; a restart forgets it.
    released: BTreeMap<IpAddr, u64>,
}

impl Truth {
    fn free(&self) -> BTreeSet<IpAddr> {
        self.blocks
            .iter()
            .filter(|(_, service)| **service == BlockService::Serving)
            .flat_map(|(block, _)| block.first_bits()..=block.last_bits())
            .map(|bits| Family::V4.address(bits))
            .filter(|a| !self.in_use.contains_key(a) && !self.is_reserved(*a))
            .collect()
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|r| r.contains(address))
    }

    fn cools(&self, address: IpAddr) -> bool {
        self.released
            .get(&address)
            .is_some_and(|at| self.now_ms - at < COOL_DOWN.as_millis() as u64)
    }

    fn ledger(&self) -> Vec<Endpoint> {
        self.in_use
            .iter()
            .map(|(&address, &n)| Endpoint {
                addresses: vec![address],
                allocated_at: self.allocated_at[&n],
                wired: true,
                ..Endpoint::bare(id(n))
            })
            .collect()
    }

    fn allocate(&mut self, manager: &mut AddressManager, n: u32) -> Result<(), TestCaseError> {
        let had = manager.addresses_of(&id(n)).first().copied();
        let free = self.free();
        match manager.allocate(&id(n), Family::V4, self.now_ms) {
            Ok(got) if got.existing => prop_assert_eq!(Some(got.address), had),
            Ok(got) => {
                prop_assert_eq!(had, None);
                prop_assert!(free.contains(&got.address), "{} is not free", got.address);
                prop_assert_eq!(got.early, self.cools(got.address));
                if got.early {
                    prop_assert!(
                        free.iter().all(|a| self.cools(*a)),
                        "others had cooled down"
                    );
                }
                self.in_use.insert(got.address, n);
                self.allocated_at.insert(n, self.now_ms);
            }
            Err(error) => {
                prop_assert!(free.is_empty(), "{} though {:?} are free", error, free);
                prop_assert_eq!(
                    matches!(error, AllocateError::NoBlock { .. }),
                    self.blocks.is_empty()
                );
            }
        }
        Ok(())
    }

    fn check_usage(&self, manager: &AddressManager) -> Result<(), TestCaseError> {
        for (block, usage) in manager.usage() {
            let of_block = |a: &&IpAddr| block.contains(**a);
            prop_assert_eq!(
                usage.used as usize,
                self.in_use.keys().filter(of_block).count()
            );
            let free = (block.first_bits()..=block.last_bits())
                .map(|bits| Family::V4.address(bits))
                .filter(|a| !self.in_use.contains_key(a) && !self.is_reserved(*a))
                .count();
            prop_assert_eq!(usage.free as usize, free);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_address_is_ever_shared(ops in prop::collection::vec(op(), 1..200)) {
        let mut manager = AddressManager::default();
        let mut truth = Truth::default();
        for op in ops {
            match op {
                Op::Allocate(n) => truth.allocate(&mut manager, n)?,
                Op::Release(n) => {
                    let gone = manager.release(&id(n), truth.now_ms);
                    let had: Vec<IpAddr> = truth.in_use.iter()
                        .filter(|(_, owner)| **owner == n).map(|(a, _)| *a).collect();
                    prop_assert_eq!(&gone, &had);
                    for address in gone {
                        truth.in_use.remove(&address);
                        truth.released.insert(address, truth.now_ms);
                    }
                }
                Op::Put(block, serves) => {
                    let service = if serves { BlockService::Serving } else { BlockService::Draining };
                    manager.put_block(cidr(BLOCKS[block]), service, truth.now_ms);
                    truth.blocks.insert(cidr(BLOCKS[block]), service);
                }
                Op::Remove(block) => {
                    manager.remove_block(&cidr(BLOCKS[block]), truth.now_ms);
                    truth.blocks.remove(&cidr(BLOCKS[block]));
                }
                Op::Reserve(ranges) => {
                    truth.reserved = ranges.iter().map(|r| cidr(RESERVED[*r])).collect();
                    manager.set_reserved(truth.reserved.clone());
                }
                Op::Wait(ms) => truth.now_ms += ms,
                Op::Restart => {
                    manager = AddressManager::default();
                    truth.released.clear();
                    manager.restore(&truth.ledger());
                    manager.set_reserved(truth.reserved.clone());
                    manager.set_blocks(&truth.blocks, truth.now_ms);
                }
            }
            truth.check_usage(&manager)?;
        }
    }
}
