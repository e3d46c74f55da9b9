//! `viaductctl pools delete`.

use anyhow::{Context, Result, ensure};
use viaduct_datastore::Records;
use viaduct_model::{Pool, PoolName};

use crate::snapshot::Snapshot;

/// Deletes a pool from which nobody holds a block.
pub(crate) async fn run(records: &Records, name: &PoolName) -> Result<String> {
    let pool = records
        .get::<Pool>(name.as_str())
        .await?
        .with_context(|| format!("there is no pool {name}"))?;
    let blocks = Snapshot::read(records).await?.blocks_from(name.as_str());
    ensure!(
        blocks == 0,
        "pool {name} cannot be deleted: nodes hold {blocks} blocks of it; disable it, so that no \
         more are carved, and delete it when they are given back"
    );
    records.delete::<Pool>(name.as_str(), &pool.version).await?;
    Ok(format!("pool {name} deleted\n"))
}
