//! What happens to one block, for whoever looks into a violation: `VIADUCT_SIM_TRACE` names
//! it. Printed to standard error; it changes nothing of the run.

use std::sync::OnceLock;

use viaduct_datastore::{Entry, records};
use viaduct_model::{Block, Cidr, Claim, Kind};

use crate::store::Content;

/// The block that is followed.
pub fn followed() -> Option<Cidr> {
    static FOLLOWED: OnceLock<Option<Cidr>> = OnceLock::new();
    *FOLLOWED.get_or_init(|| std::env::var("VIADUCT_SIM_TRACE").ok()?.parse().ok())
}

/// Something happened at `now`.
pub fn tell(now: u64, what: impl FnOnce(&Cidr) -> Option<String>) {
    if let Some(what) = followed().as_ref().and_then(what) {
        eprintln!("{now:>9} {what}");
    }
}

/// A record was written, or is gone.
pub fn record(now: u64, kind: Kind, name: &str, before: Option<&Entry>, entry: Option<&Entry>) {
    tell(now, |cidr| match kind {
        Kind::Block if Cidr::from_record_name(name) == Some(*cidr) => Some(block(entry)),
        Kind::Claim => {
            let said = |entry: Option<&Entry>| entry.map_or_else(String::new, |e| claim(e, cidr));
            let (was, is) = (said(before), said(entry));
            let gone = if entry.is_none() { " (gone)" } else { "" };
            (was != is).then(|| format!("claim of {name}: {is}{gone}"))
        }
        _ => None,
    });
}

/// The store was put back.
pub fn put_back(now: u64, content: &Content) {
    tell(now, |cidr| {
        let mut told = "the store is put back".to_owned();
        for ((kind, name), entry) in &content.records {
            match kind {
                Kind::Block if Cidr::from_record_name(name) == Some(*cidr) => {
                    told += &format!("\n          to {}", block(Some(entry)));
                }
                Kind::Claim if !claim(entry, cidr).is_empty() => {
                    told += &format!("\n          to claim of {name}: {}", claim(entry, cidr));
                }
                _ => {}
            }
        }
        Some(told)
    });
}

fn block(entry: Option<&Entry>) -> String {
    match entry.map(records::decode::<Block>) {
        Some(Ok(found)) => {
            let Block {
                state,
                node,
                generation,
                ..
            } = found.record;
            format!("block: {state} of {node}, generation {generation}")
        }
        _ => "block: none".to_owned(),
    }
}

/// What a claim says of the block; empty: nothing.
fn claim(entry: &Entry, cidr: &Cidr) -> String {
    let Ok(found) = records::decode::<Claim>(entry) else {
        return String::new();
    };
    let (name, claim) = (cidr.record_name(), found.record);
    [
        ("holds", claim.holds.get(&name)),
        ("renews", claim.renews.get(&name)),
        ("gives", claim.gives.get(&name)),
    ]
    .iter()
    .filter_map(|(verb, generation)| Some(format!("{verb} {} ", (*generation)?)))
    .collect()
}
