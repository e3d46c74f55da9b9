//! What the owner answers to a question about one address: who has it and since when, or
//! since when it rests. Changes nothing.

use std::net::IpAddr;

use tokio::sync::oneshot;
use viaduct_cni::protocol::{AddressState, Holder};

use super::owner::Owner;
use crate::clock::now_ms;

/// A question about an address.
#[derive(Debug)]
pub(super) struct Inquiry {
    pub(super) address: IpAddr,
    pub(super) answer: oneshot::Sender<AddressState>,
}

impl Owner {
    pub(super) fn inquire(&self, inquiry: Inquiry) {
        let address = inquiry.address;
        let now = now_ms();
        let holders = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.addresses.contains(&address))
            // One whose device only has to be deleted yet has given it back already.
            .filter(|endpoint| self.addresses.has(&endpoint.id, address))
            .map(|endpoint| Holder {
                id: endpoint.id.clone(),
                network: endpoint.network.clone(),
                link: endpoint.link.clone(),
                pod: endpoint.pod.clone(),
                wired: endpoint.wired,
                for_ms: now.saturating_sub(endpoint.allocated_at),
            });
        let rests = self.addresses.rests(address);
        let state = AddressState {
            address,
            node: self
                .node
                .borrow()
                .as_ref()
                .map(|state| state.local.name.to_string()),
            block: self
                .addresses
                .block_of(address)
                .map(|block| block.to_string()),
            reserved: self.addresses.reserves(address),
            holders: holders.collect(),
            rested_ms: rests.map(|(since, _)| now.saturating_sub(since)),
            cools_ms: rests.map_or(0, |(_, until)| until.saturating_sub(now)),
        };
        // Whoever asked may have gone.
        let _ = inquiry.answer.send(state);
    }
}
