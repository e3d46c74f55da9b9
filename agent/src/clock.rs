//! The clock that agents measure by: time since boot, sleep included, which nobody
//! sets and which no restart of the agent interrupts.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Which boot of the machine this is: times of another one's clock mean nothing.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Milliseconds since boot.
pub fn now_ms() -> u64 {
    // The call cannot fail for this clock; were it to, nothing would be trusted for long.
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_millis()).ok())
        .unwrap_or(u64::MAX)
}
