//! `viaductctl pools disable` and `enable`.

use anyhow::{Context, Result, bail};
use viaduct_datastore::{Records, StoreError};
use viaduct_model::{Pool, PoolName};

/// The controller writes the pool's status into the same record, so a write may
/// meet another one; it does so at most once a minute.
const ATTEMPTS: usize = 10;

/// Switches a pool off or on.
pub(crate) async fn run(records: &Records, name: &PoolName, disabled: bool) -> Result<String> {
    let what = if disabled { "disabled" } else { "enabled" };
    for _ in 0..ATTEMPTS {
        let found = records
            .get::<Pool>(name.as_str())
            .await?
            .with_context(|| format!("there is no pool {name}"))?;
        if found.record.disabled == disabled {
            return Ok(format!("pool {name} is {what} already\n"));
        }
        let pool = Pool {
            disabled,
            ..found.record
        };
        match records
            .update(name.as_str(), &pool, &found.version, None)
            .await
        {
            Ok(_) => return Ok(format!("pool {name} {what}\n")),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("pool {name} was changed by somebody else {ATTEMPTS} times in a row: try again")
}
