//! What the end-to-end tests share: looking at records, at the kernel and at a
//! stream of packets, from outside of the programs under test.
//!
//! The tests are in `tests/e2e`, one file per theme. They drive the real programs
//! in a lab each ([`viaduct_lab::in_lab`]); nothing here may look into a program's
//! inside, so that what a test finds is what a user would find.

mod host;
mod kernel;
mod libcni;
mod pinging;
mod programs;
mod raw;
mod traffic;

pub use host::{difference, everything};
pub use kernel::{Monitor, backends_of_the_kernel, entries, leaks, ours};
pub use libcni::{Libcni, programs as programs_of_cni};
pub use pinging::{Losses, Pinging};
pub use programs::{Run, refused, run, viaductctl};
pub use raw::Raw;
pub use traffic::{Carried, Traffic};

use std::time::Duration;

use anyhow::Result;
use viaduct_lab::{Echo, Pod};

/// How long anything may take to come true. Far longer than it does take: these
/// tests are about what happens, `make bench` is about how fast.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tries until it works, for [`PATIENCE`].
///
/// # Errors
/// The last error of `attempt`.
pub fn eventually<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    viaduct_lab::eventually(PATIENCE, attempt)
}

/// Every pod pings every other.
///
/// # Errors
/// The first pair that has no reply.
pub fn everybody_pings(pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            from.ping(to.ip, Echo::default())?;
        }
    }
    Ok(())
}
