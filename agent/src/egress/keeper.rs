//! One table's comparison and what it remembers: used by the task, which says when.
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
    /// What is worth knowing.
    pub warnings: Vec<String>,
    /// Transactions made.
    pub writes: u64,
    /// Those of them that undid what somebody else had done.
    pub repairs: u64,
}

/// The comparison and what it remembers.
#[derive(Debug)]
pub struct Keeper<F> {
    firewall: F,
    family: TableFamily,
    /// How the table was last seen or made.
    known: Known,
    /// The same while it is doubted: what differs from it now, somebody else has done.
    left: Known,
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

/// How often one comparison changes the table before it leaves the rest to the next.
const PASSES: usize = 4;

impl<F: Firewall> Keeper<F> {
    /// Nothing is listed or changed yet.
    pub fn new(firewall: F, family: TableFamily) -> Self {
        Self {
            firewall,
            family,
            known: None,
            left: None,
            unreadable: false,
            speaks: false,
            dialect: BTreeMap::new(),
        }
    }

    /// Compares and changes; `look` says that memory is to be doubted. What is wanted
    /// is asked for again when the kernel refuses it: a device may have gone meanwhile.
    pub async fn run<W>(&mut self, wanted: W, look: bool) -> Outcome
    where
        W: FnMut() -> Option<Ruleset>,
    {
        let mut outcome = Outcome::default();
        if look && self.known.is_some() {
            self.left = self.known.take();
        }
        let done = self.try_run(wanted, &mut outcome).await;
        outcome.verified = matches!(done, Ok(true));
        if let Err(error) = done {
            tell(self.family, &error, &mut outcome);
        }
        outcome
    }

    async fn try_run<W>(&mut self, mut ask: W, outcome: &mut Outcome) -> Result<bool, ToolError>
    where
        W: FnMut() -> Option<Ruleset>,
    {
        let family = self.family;
        let mut wanted = ask();
        let mut written = false;
        for _ in 0..PASSES {
            let remembered = self.known.is_some();
            let listed = match self.known.take() {
                Some(known) => known,
                None => match self.list(wanted.as_ref()).await {
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
            tracing::debug!(%change, "{family} changes");
            let text = transaction(family, wanted.as_ref(), &change);
            if let Err(error) = self.firewall.apply(text).await {
                let ToolError::Refused(_) = error else {
                    return Err(error);
                };
                // It may fit no longer, and has done nothing then.
                let fits = std::mem::replace(&mut wanted, ask()) == wanted && !remembered;
                if fits {
                    let missing = features::missing(&mut self.firewall, family).await;
                    return Err(missing.unwrap_or(error));
                }
                self.left = Some(listed);
                continue;
            }
            outcome.writes += 1;
            if drifted {
                outcome.repairs += 1;
                tracing::warn!("{family} was changed by somebody else and is repaired: {change}");
            }
            if self.speaks || remembered && !matches!(change, Change::Rewrite(_)) {
                self.known = Some(wanted);
                return Ok(true);
            }
            // Looked at once: this is where a spelling shows.
            written = true;
        }
        outcome.problems.push(format!(
            "{family} differs again and again from what was just written; somebody else changes it"
        ));
        Ok(false)
    }

    /// What is listed, in our own spelling where it is known to mean the same, and of
    /// the devices that are there.
    async fn list(&mut self, wanted: Option<&Ruleset>) -> Result<Option<Ruleset>, ToolError> {
        let mut found = self.firewall.list(self.family).await?;
        for (name, chain) in found.iter_mut().flat_map(|found| &mut found.chains) {
            if let Some((ours, theirs)) = self.dialect.get(name)
                && theirs.says_the_same(chain)
            {
                *chain = ours.clone();
            }
            let ours = wanted.and_then(|wanted| wanted.chains.get(name));
            if let Some(ours) = ours
                && ours.says_the_same(&unindexed(chain))
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
            if ours.says_the_same(theirs)
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

/// A chain as listings tell of it.
fn unindexed(chain: &Chain) -> Chain {
    let mut chain = chain.clone();
    if let Some(device) = chain.device_mut() {
        device.index = None;
    }
    chain
}

/// Without its table no node masquerades; without the other the source check is left
/// to the kernel's own, and a host that cannot have the table can be used.
fn tell(family: TableFamily, error: &ToolError, outcome: &mut Outcome) {
    let lasting = matches!(error, ToolError::Missing | ToolError::Lacks { .. });
    if family == TableFamily::Inet || !lasting {
        outcome.problems.push(format!("{family}: {error}"));
        return;
    }
    outcome.verified = true;
    let mut sentence =
        format!("pods are held to their own addresses by the kernel's rp_filter alone: {error}");
    if rp_filter_is_loose() {
        sentence.push_str(
            "; and net.ipv4.conf.all.rp_filter is 2, which outweighs the strict check of pods' \
             devices, so that pods can send from addresses that are not theirs",
        );
    }
    outcome.warnings.push(sentence);
}

/// Whether the host's setting outweighs the strict one of pods' devices.
pub(super) fn rp_filter_is_loose() -> bool {
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter");
    all.is_ok_and(|all| all.trim() == "2")
}
