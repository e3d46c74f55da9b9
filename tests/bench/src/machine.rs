//! What the numbers were measured on, and how busy it was with other things.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine, as the header of the output shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Seconds since 1970.
    pub time: u64,
    /// The kernel's release.
    pub kernel: String,
    /// How many CPUs this process may use.
    pub cpus: usize,
    /// The load average of the last minute before anything was started.
    pub load_before: String,
}

impl Machine {
    /// Looks at the machine now.
    pub(crate) fn now() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: load(),
        }
    }
}

/// The load average of the last minute.
pub(crate) fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned())
}
