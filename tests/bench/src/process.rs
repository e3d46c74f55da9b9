//! What a process uses, from `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// The resident memory of a process in MiB (`VmRSS`).
///
/// # Errors
/// When the process is gone.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    status_kib(pid, "VmRSS:").map(|kib| kib / 1024.0)
}

/// Of the resident memory, what is the process's own and not of a file, in MiB.
///
/// # Errors
/// When the process is gone.
pub(crate) fn anonymous_mib(pid: u32) -> Result<f64> {
    status_kib(pid, "RssAnon:").map(|kib| kib / 1024.0)
}

fn status_kib(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{path} shows no {field}"))
}

/// The CPU time that all threads of a process have had so far. From `schedstat`,
/// which counts nanoseconds; clock ticks of 10 ms would hide what is wanted here.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let dir = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in std::fs::read_dir(&dir).with_context(|| dir.clone())? {
        let path = task?.path().join("schedstat");
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        total += text
            .split_whitespace()
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .with_context(|| format!("{} reads {text:?}", path.display()))?;
    }
    Ok(Duration::from_nanos(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let mut sum = 0u64;
        while cpu_time(pid).unwrap() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let resident = resident_mib(pid).unwrap();
        assert!(resident > 0.1 && anonymous_mib(pid).unwrap() <= resident);
        assert!(cpu_time(u32::MAX).is_err());
    }
}
