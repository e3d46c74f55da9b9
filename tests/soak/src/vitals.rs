//! What the agents use: memory, descriptors, devices, files.

use anyhow::{Context, Result};
use viaduct_lab::{Node, command};

/// What one agent and its node have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vitals {
    /// The node.
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// Its resident memory in KiB.
    pub resident: u64,
    /// Its open descriptors.
    pub descriptors: usize,
    /// The node's devices of ours.
    pub devices: usize,
    /// What lies in the run directory.
    pub files: usize,
}

/// What an agent that was not killed may have more at the end than at half-time, in KiB:
/// before that its heap finds its size under load.
const MEMORY: u64 = 16 << 10;
/// And in descriptors.
const DESCRIPTORS: usize = 8;

impl Vitals {
    /// As they are now.
    ///
    /// # Errors
    /// When the agent does not run.
    pub(crate) fn now(node: &Node) -> Result<Self> {
        let pid = node.agent_pid().context("no agent")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let links = node.ip("-o link show")?;
        let files = command::run("find", [node.run_dir().as_os_str()])?;
        Ok(Self {
            node: node.name().to_owned(),
            pid,
            resident: resident(&status).context("no VmRSS")?,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            devices: links.lines().filter(|line| line.contains(": via")).count(),
            files: files.lines().count(),
        })
    }

    /// What of these, at the end, has grown more than it may since `start`, or since `half`
    /// of the time was over.
    pub(crate) fn grown(&self, start: &Vitals, half: &Vitals) -> Vec<String> {
        let mut grown = Vec::new();
        let mut tell = |what: &str, before: String, after: String| {
            grown.push(format!(
                "{}: {what} grew from {before} to {after}",
                self.node
            ));
        };
        let number = |n: usize| n.to_string();
        if self.devices > start.devices {
            tell("devices", number(start.devices), number(self.devices));
        }
        // Another process has another history, and its heap another size.
        if self.pid == half.pid {
            if self.resident > half.resident + MEMORY {
                let mib = |kib: u64| format!("{} MiB", kib >> 10);
                tell("memory", mib(half.resident), mib(self.resident));
            }
            if self.descriptors > half.descriptors + DESCRIPTORS {
                let (before, after) = (half.descriptors, self.descriptors);
                tell("descriptors", number(before), number(after));
            }
        }
        grown
    }
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told_and_another_process_is_not_compared() {
        let start = Vitals {
            node: "n3".to_owned(),
            pid: 7,
            resident: 10 << 10,
            descriptors: 30,
            devices: 3,
            files: 9,
        };
        assert!(start.grown(&start, &start).is_empty());
        let end = Vitals {
            resident: 50 << 10,
            descriptors: 39,
            devices: 4,
            ..start.clone()
        };
        let told = end.grown(&start, &start);
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[1], "n3: memory grew from 10 MiB to 50 MiB");
        let other = Vitals { pid: 8, ..end };
        assert_eq!(
            other.grown(&start, &start),
            ["n3: devices grew from 3 to 4"]
        );
    }

    #[test]
    fn memory_is_read_from_status() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t  1234 kB\n"), Some(1234));
        assert_eq!(resident("Name:\tx\n"), None);
    }
}
