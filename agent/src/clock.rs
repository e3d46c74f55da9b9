//! The clock that agents measure by: time since boot, sleep included, which nobody
//! sets and which no restart of the agent interrupts.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since boot.
pub fn now_ms() -> u64 {
    // The call cannot fail for this clock; were it to, nothing would be trusted for long.
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_millis()).ok())
        .unwrap_or(u64::MAX)
}
