//! What whoever runs tests can ask of every lab by the environment: which backend a
//! lab that names none has, and how much more patience a slow machine needs.
//!
//! A value that makes no sense is refused when a lab is brought up; until then it
//! counts as absent.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::Backend;

/// The backend of labs that name none: `vxlan`, `ipip` or `host-gw`.
pub const BACKEND: &str = "VIADUCT_TEST_BACKEND";

/// How many times longer than usual anything may take, a whole number: for machines
/// that are emulated.
pub const PATIENCE: &str = "VIADUCT_TEST_PATIENCE";

/// The most patience that can be asked for.
const MOST: u32 = 100;

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|text| text.to_string_lossy().into_owned())
}

fn backend_of(text: Option<&str>) -> Result<Option<Backend>> {
    let parsed = text.map(|text| {
        text.parse()
            .with_context(|| format!("{BACKEND}={text} is not allowed: vxlan, ipip or host-gw"))
    });
    parsed.transpose()
}

fn factor_of(text: Option<&str>) -> Result<u32> {
    let Some(text) = text else { return Ok(1) };
    let factor = text.parse().ok().filter(|n| (1..=MOST).contains(n));
    factor.with_context(|| format!("{PATIENCE}={text} is not allowed: a number from 1 to {MOST}"))
}

/// Checks both variables.
///
/// # Errors
/// Names the variable and what is allowed.
pub fn check() -> Result<()> {
    factor_of(variable(PATIENCE).as_deref())?;
    backend_of(variable(BACKEND).as_deref()).map(drop)
}

/// The backend of a lab that names none.
pub fn backend() -> Backend {
    let asked = backend_of(variable(BACKEND).as_deref());
    asked.ok().flatten().unwrap_or(Backend::Vxlan)
}

/// A time limit for the machine that this runs on. For limits alone: what has to take
/// a certain time takes that on every machine.
pub fn scaled(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    limit * *FACTOR.get_or_init(|| factor_of(variable(PATIENCE).as_deref()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_allowed() {
        assert_eq!(backend_of(None).unwrap(), None);
        assert_eq!(backend_of(Some("ipip")).unwrap(), Some(Backend::Ipip));
        assert_eq!(factor_of(None).unwrap(), 1);
        assert_eq!(factor_of(Some("3")).unwrap(), 3);
        let refused = backend_of(Some("gre")).unwrap_err();
        assert!(format!("{refused}").contains("VIADUCT_TEST_BACKEND=gre"));
        for bad in ["", "0", "-1", "1.5", "101", "much"] {
            let refused = factor_of(Some(bad)).unwrap_err();
            assert!(format!("{refused}").contains("from 1 to 100"), "{bad}");
        }
    }
}
