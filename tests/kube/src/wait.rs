//! Waiting for what takes its time, with the last reason when it takes too long.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// Tries until it works; after `limit` the last failure is the answer.
///
/// # Errors
/// The last one.
pub(crate) fn until<T>(limit: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if since.elapsed() > limit => {
                return Err(error).with_context(|| format!("not within {limit:?}"));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}
