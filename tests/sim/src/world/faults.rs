//! What goes wrong.

use viaduct_model::Kind;

use super::{QUARANTINE, RECLAIM, World};
use crate::agent::TTL;
use crate::store::all;
use crate::trace;

impl World {
    pub(super) fn fault(&mut self) {
        let n = self.rng.index(self.agents.len());
        let c = self.rng.index(self.controllers.len());
        let span = self.rng.under(2 * QUARANTINE);
        let long = self.rng.under(2 * (RECLAIM + QUARANTINE));
        let kind = self.rng.under(100);
        let now = self.now;
        let Some(agent) = self.agents.get_mut(n) else {
            return;
        };
        match kind {
            0..8 => {
                agent.up = false;
                self.tally.crashes += 1;
            }
            8..20 => {
                trace::tell(now, |_| Some(format!("{} restarts", agent.name)));
                agent.restart(now);
            }
            20..24 if self.put_back_at.is_none_or(|at| now > at + 4 * QUARANTINE) => {
                trace::tell(now, |_| Some(format!("{} reboots", agent.name)));
                agent.reboot(now);
                self.tally.reboots += 1;
            }
            24..32 => agent.asleep_until = now + span,
            32..34 => agent.asleep_until = now + long,
            34..42 => {
                agent.connected = false;
                agent.cut();
                self.tally.partitions += 1;
            }
            42..60 => agent.connected = true,
            60..64 => agent.cut(),
            64..72 => {
                trace::tell(now, |_| Some(format!("controller {c} starts anew")));
                self.tally.crashes += 1;
                let fresh = self.controller();
                if let Some(old) = self.controllers.get_mut(c) {
                    *old = fresh;
                }
            }
            72..80 => {
                if let Some(controller) = self.controllers.get_mut(c) {
                    controller.leads = !controller.leads;
                    trace::tell(now, |_| Some(format!("controller {c}: {controller:?}")));
                }
            }
            80..83 => {
                if let Some(controller) = self.controllers.get_mut(c) {
                    controller.connected = !controller.connected;
                    controller.cut();
                }
            }
            83..86 => {
                let name = agent.name.as_str().to_owned();
                let mut inner = self.store.lock();
                if inner.get(Kind::Claim, &name).is_none() {
                    // Nothing is expected, so it cannot be turned down.
                    let _ = inner.delete(Kind::Node, &name, None);
                    self.tally.deleted += 1;
                }
            }
            86..88 => {
                let content = self.store.lock().content.clone();
                if self.snapshots.len() > 3 {
                    self.snapshots.remove(0);
                }
                self.snapshots.push(content);
            }
            88 => self.put_back(),
            89..95 => {
                if let Some(controller) = self.controllers.get_mut(c) {
                    controller.asleep_until = now + span;
                    trace::tell(now, |_| Some(format!("controller {c} is stopped")));
                }
            }
            _ => {}
        }
    }

    /// Puts the store back to a snapshot, however old.
    ///
    /// Not where a node that owned a block then has lost its memory of it since (a reboot)
    /// and another owns it now: that is a known limit (docs/adr/0122).
    fn put_back(&mut self) {
        if self.snapshots.is_empty() || !self.rng.one_in(3) {
            return;
        }
        let at = self.rng.index(self.snapshots.len());
        let Some(content) = self.snapshots.get(at).cloned() else {
            return;
        };
        let then = all(&content);
        let today = self.store.lock().blocks.clone();
        let remembered = then.iter().all(|(cidr, block)| {
            let same = today.get(cidr).is_some_and(|now| now.node == block.node);
            let owner = self.agents.iter().find(|a| a.name == block.node);
            same || owner.is_some_and(|owner| {
                owner.tenure.is_held(cidr) || owner.tenure.is_over(cidr, block.generation)
            })
        });
        if !remembered {
            self.tally.not_put_back += 1;
            return;
        }
        let told = self.controllers.iter().all(|c| c.is_current(&self.store));
        self.store.lock().put_back(content, TTL);
        self.put_back_at = Some(self.now);
        self.tally.put_back += 1;
        // Controllers that had seen all go on; else they are started anew, as the manual
        // says.
        if !told || self.rng.one_in(2) {
            trace::tell(self.now, |_| Some("both controllers start anew".into()));
            for n in 0..self.controllers.len() {
                let fresh = self.controller();
                if let Some(old) = self.controllers.get_mut(n) {
                    *old = fresh;
                }
            }
        }
    }
}
