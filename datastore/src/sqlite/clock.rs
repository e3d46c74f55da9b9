//! The clock that leases are measured by: time since boot, sleep included, and
//! which boot it was. All processes of one machine agree on it, nobody sets it.

use nix::time::{ClockId, clock_gettime};

/// A moment of this machine's boot.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// The kernel's identifier of this boot.
    pub(super) boot: String,
}

impl Clock {
    /// Reads which boot this is.
    pub(super) fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
        }
    }

    /// Milliseconds since boot.
    pub(super) fn now_ms(&self) -> i64 {
        // The call cannot fail for this clock; were it to, leases would expire late.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
            now.tv_sec()
                .saturating_mul(1000)
                .saturating_add(now.tv_nsec() / 1_000_000)
        })
    }
}
