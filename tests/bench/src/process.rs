//! What a process uses, from `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The resident memory of a process in MiB (`VmRSS`).
///
/// # Errors
/// When the process is gone.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    status_kib(pid, "VmRSS:").map(|kib| kib / 1024.0)
}

/// The most resident memory that a process ever had in MiB (`VmHWM`).
///
/// # Errors
/// When the process is gone.
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    status_kib(pid, "VmHWM:").map(|kib| kib / 1024.0)
}

/// The number of prefixes in the main table of a process's namespace. Asking costs
/// microseconds, so that waiting takes nothing from what is waited for.
///
/// # Errors
/// When the process is gone.
pub(crate) fn prefixes(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/net/fib_triestat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Prefixes:")?.trim().parse().ok())
        .with_context(|| format!("{path} shows no prefixes"))
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

/// The CPU time that a process has had so far, in nanoseconds by its own clock.
/// Neither the ticks of `/proc/<pid>/stat`, which are 10 ms, nor the sum over its
/// threads, which forgets those that have ended.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .with_context(|| format!("the CPU clock of process {pid}"))?;
    let time = clock
        .now()
        .with_context(|| format!("the CPU time of process {pid}"))?;
    Ok(Duration::from(time))
}

/// The CPU time of the programs that a process has started and that have ended, in
/// steps of 10 ms (`/proc/<pid>/stat`).
///
/// # Errors
/// When the process is gone.
pub(crate) fn childrens_cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name, in brackets, may have blanks. `cutime` and `cstime` are fields 16 and 17.
    let (_, fields) = text.rsplit_once(')').with_context(|| path.clone())?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_thread_that_has_ended_counts() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let busy = std::thread::spawn(move || {
            let mut sum = 0u64;
            while cpu_time(pid).unwrap() < before + Duration::from_millis(5) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        busy.join().unwrap();
        assert!(cpu_time(pid).unwrap() >= before + Duration::from_millis(5));
    }

    #[test]
    fn this_namespace_has_a_readable_routing_table() {
        prefixes(std::process::id()).unwrap();
    }

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
        assert!(peak_mib(pid).unwrap() >= resident);
        assert!(cpu_time(u32::MAX).is_err());
    }
}
