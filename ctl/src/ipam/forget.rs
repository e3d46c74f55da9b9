//! `viaductctl ipam forget`: deletes a record that contradicts the others.

use anyhow::{Context, Result, ensure};
use viaduct_datastore::Records;
use viaduct_model::Kind;

pub(super) async fn run(records: &Records, kind: &str, name: &str, yes: bool) -> Result<String> {
    let kinds = [Kind::Pool, Kind::Block, Kind::Node, Kind::Claim];
    let kind = kinds.into_iter().find(|k| k.to_string() == kind);
    let kind = kind.context("there is no such kind")?;
    let store = records.store();
    // Also one that cannot be read.
    let entry = store
        .get(kind, name)
        .await?
        .with_context(|| format!("there is no {kind} {name:?}"))?;
    let content = String::from_utf8_lossy(&entry.value);
    ensure!(
        yes,
        "{kind} {name:?} is not deleted: confirm with --yes; it says {content}"
    );
    store.delete(kind, name, &entry.version).await?;
    // So that it can be put back by hand.
    Ok(format!("{kind} {name} deleted; it said {content}\n"))
}
