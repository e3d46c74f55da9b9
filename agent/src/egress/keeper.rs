//! The table's comparison and what it remembers: used by the task, which says when.
//!
//! It remembers how the table was last seen or made. A change is compared with that
//! memory and costs one transaction; the kernel is listed only when there is reason to
//! doubt the memory.

use std::collections::BTreeMap;

use super::change::{Change, change, transaction};
use super::features;
use super::ruleset::{Chain, Ruleset, TableFamily};
use super::tool::{Firewall, ToolError};

/// What one comparison did and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the table is as it should be.
    pub verified: bool,
    /// What differs or failed.
    pub problems: Vec<String>,
    /// Transactions made.
    pub writes: u64,
    /// Those of them that undid what somebody else had done.
    pub repairs: u64,
}

/// Whether the kernel is listed though something is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No: only what is wanted has changed.
    No,
    /// If anybody has changed any table since ours was last seen to be right: an audit.
    IfChanged,
    /// Yes: what is remembered is to be doubted.
    Yes,
}

/// The comparison and what it remembers.
#[derive(Debug)]
pub struct Keeper<F> {
    firewall: F,
    /// How the table was last seen or made.
    known: Known,
    /// The same while it is doubted: what differs from it now, somebody else has done.
    left: Known,
    /// The generation that the last listing that was right saw, or an older one.
    seen: Option<u32>,
    /// Whether the last listing could not be read, for which the table is made anew
    /// once and not again and again.
    unreadable: bool,
    /// Whether a listing has been understood: what is written then need not be listed
    /// at once, which halves the cost of a repair.
    speaks: bool,
    /// How this release of `nft` spells chains that we have just made: ours and its.
    dialect: BTreeMap<String, (Chain, Chain)>,
}

/// A table or none, where that is known.
type Known = Option<Option<Ruleset>>;

/// The table's family.
const INET: TableFamily = TableFamily::Inet;

/// How often one comparison changes the table before it leaves the rest to the next.
const PASSES: usize = 4;

impl<F: Firewall> Keeper<F> {
    /// Nothing is listed or changed yet.
    pub fn new(firewall: F) -> Self {
        Self {
            firewall,
            known: None,
            left: None,
            seen: None,
            unreadable: false,
            speaks: false,
            dialect: BTreeMap::new(),
        }
    }

    /// Somebody has deleted the table: that needs no listing.
    pub fn deleted(&mut self) {
        self.doubt();
        self.known = Some(None);
    }

    fn doubt(&mut self) {
        if let Some(known) = self.known.take() {
            // What was deleted meanwhile is nothing that we have left so.
            self.left = self.left.take().or(Some(known));
        }
    }

    /// Compares and changes.
    pub async fn run(&mut self, wanted: Option<Ruleset>, look: Look) -> Outcome {
        let mut outcome = Outcome::default();
        if match look {
            Look::No => false,
            Look::IfChanged => self.seen.is_none() || self.seen != self.firewall.generation(),
            Look::Yes => true,
        } {
            self.doubt();
        }
        match self.try_run(wanted, &mut outcome).await {
            Ok(verified) => outcome.verified = verified,
            Err(error) => outcome.problems.push(format!("{INET}: {error}")),
        }
        outcome
    }

    async fn try_run(
        &mut self,
        wanted: Option<Ruleset>,
        outcome: &mut Outcome,
    ) -> Result<bool, ToolError> {
        let mut written = false;
        for _ in 0..PASSES {
            let remembered = self.known.is_some();
            // Before the listing: what changes meanwhile is younger.
            let generation = match remembered {
                true => None,
                false => self.firewall.generation(),
            };
            let listed = match self.known.take() {
                Some(known) => known,
                None => match self.list().await {
                    // Who has no nft has no table.
                    Err(ToolError::Missing) if wanted.is_none() => None,
                    // A dormant table is such: nft 1.0.6 prints rubbish for the flag.
                    Err(ToolError::Unreadable(why)) if !self.unreadable => {
                        self.unreadable = true;
                        let unknown = vec![format!("something that nft cannot list ({why})")];
                        let nothing = Ruleset::default();
                        Some(Ruleset { unknown, ..nothing })
                    }
                    listed => {
                        let listed = listed?;
                        self.unreadable = false;
                        listed
                    }
                },
            };
            let left = self.left.take();
            let Some(change) = change(wanted.as_ref(), listed.as_ref()) else {
                self.speaks |= !remembered && wanted.is_some();
                self.known = Some(wanted);
                self.seen = generation.or(self.seen);
                return Ok(true);
            };
            if written && self.learn(wanted.as_ref(), listed.as_ref()) {
                // Read again in the dialect that was just learnt.
                continue;
            }
            let drifted = left.is_some_and(|left| {
                let ours = self::change(wanted.as_ref(), left.as_ref());
                change.exceeds(ours.as_ref())
            });
            tracing::debug!(%change, "{INET} changes");
            let text = transaction(INET, wanted.as_ref(), &change);
            if let Err(error) = self.firewall.apply(text).await {
                let ToolError::Refused(_) = error else {
                    return Err(error);
                };
                if !remembered {
                    let missing = features::missing(&mut self.firewall).await;
                    return Err(missing.unwrap_or(error));
                }
                // It is not what it was, and nothing has been done.
                self.left = Some(listed);
                continue;
            }
            outcome.writes += 1;
            if drifted {
                outcome.repairs += 1;
                tracing::warn!("{INET} was changed by somebody else and is repaired: {change}");
            }
            if self.speaks || remembered && !matches!(change, Change::Rewrite(_)) {
                self.known = Some(wanted);
                return Ok(true);
            }
            // Looked at once: this is where a spelling shows.
            written = true;
        }
        outcome.problems.push(format!(
            "{INET} differs again and again from what was just written; somebody else changes it"
        ));
        Ok(false)
    }

    /// What is listed, in our own spelling where it is known to mean the same.
    async fn list(&mut self) -> Result<Option<Ruleset>, ToolError> {
        let mut found = self.firewall.list(INET).await?;
        for (name, chain) in found.iter_mut().flat_map(|found| &mut found.chains) {
            if let Some((ours, theirs)) = self.dialect.get(name)
                && theirs == chain
            {
                *chain = ours.clone();
            }
        }
        Ok(found)
    }

    /// Takes what is listed right after it was written for another release's spelling
    /// of it, where the chain has as many rules; says whether there was any to learn.
    fn learn(&mut self, wanted: Option<&Ruleset>, listed: Option<&Ruleset>) -> bool {
        let (Some(wanted), Some(listed)) = (wanted, listed) else {
            return false;
        };
        let mut learnt = false;
        self.dialect
            .retain(|name, _| wanted.chains.contains_key(name));
        for (name, ours) in &wanted.chains {
            let Some(theirs) = listed.chains.get(name) else {
                continue;
            };
            let fresh = (ours.clone(), theirs.clone());
            if ours == theirs
                || ours.rules.len() != theirs.rules.len()
                || self.dialect.get(name) == Some(&fresh)
            {
                continue;
            }
            tracing::debug!(chain = name, "this release of nft spells it in its own way");
            self.dialect.insert(name.clone(), fresh);
            learnt = true;
        }
        learnt
    }
}
