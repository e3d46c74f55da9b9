//! A stream of packets, to see whether any is lost while something happens.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use viaduct_lab::{Pod, command, netns};

/// A hundred packets a second from a pod to an address.
pub struct Pinging {
    child: Child,
    output: PathBuf,
}

impl Pinging {
    /// Begins, and waits for the first reply.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let output = PathBuf::from(format!("/run/lab/ping-{number}"));
        let file = File::create(&output)?;
        let mut command = command::command("ping");
        command
            .args(["-n", "-i", "0.01", &to.ip.to_string()])
            .stderr(Stdio::from(file.try_clone()?))
            .stdout(Stdio::from(file));
        let child = netns::within(&from.netns, || Ok(command.spawn()?)).context("ping")?;
        let pinging = Self { child, output };
        crate::eventually(|| pinging.replies().map(drop))?;
        Ok(pinging)
    }

    /// The sequence numbers that were replied to so far.
    fn replies(&self) -> Result<BTreeSet<u32>> {
        let text = std::fs::read_to_string(&self.output)?;
        let replies: BTreeSet<u32> = text.lines().filter_map(replied).collect();
        ensure!(!replies.is_empty(), "no reply yet: {text}");
        Ok(replies)
    }

    /// Ends after at least `least` replies; none before the last may be missing.
    ///
    /// # Errors
    /// Which were lost.
    pub fn lost_nothing(self, least: usize) -> Result<()> {
        crate::eventually(|| {
            let count = self.replies()?.len();
            ensure!(count >= least, "{count} replies of {least}");
            Ok(())
        })?;
        let output = self.output.clone();
        let Losses { sent, lost } = self.stop()?;
        ensure!(
            lost.is_empty(),
            "{} packets of {sent} were lost: {lost:?}; ping said:\n{}",
            lost.len(),
            around(&std::fs::read_to_string(output)?, &lost)
        );
        Ok(())
    }

    /// Ends, and says what was lost before the last reply.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(mut self) -> Result<Losses> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGINT,
        )?;
        self.child.wait()?;
        let replies = self.replies()?;
        // The last one sent may have been under way when we stopped.
        let last = replies.last().copied().unwrap_or_default();
        Ok(Losses {
            sent: last,
            lost: (1..last).filter(|n| !replies.contains(n)).collect(),
        })
    }
}

/// The number that a line of ping's says was replied to.
fn replied(line: &str) -> Option<u32> {
    let (_, number) = line
        .contains("bytes from")
        .then(|| line.split_once("icmp_seq="))??;
    number.split(' ').next()?.parse().ok()
}

/// What ping said but for replies, and the replies next to what was lost with their times.
fn around(output: &str, lost: &[u32]) -> String {
    let near = |n: u32| lost.iter().any(|lost| lost.abs_diff(n) <= 3);
    let told: Vec<&str> = output
        .lines()
        .filter(|line| replied(line).is_none_or(near))
        .take(40)
        .collect();
    told.join("\n")
}

/// What a stream lost.
pub struct Losses {
    /// How many were sent until the last reply.
    pub sent: u32,
    /// The numbers of those without a reply.
    pub lost: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_loss_are_told_its_neighbours_and_all_that_is_no_reply() {
        let reply = |n| format!("64 bytes from 10.64.0.66: icmp_seq={n} ttl=62 time=0.4 ms\n");
        let output: String = [1, 2, 4, 8].map(reply).concat() + "ping: sendmsg: refused\n";
        assert_eq!(
            output.lines().filter_map(replied).collect::<Vec<_>>(),
            [1, 2, 4, 8]
        );
        let told = around(&output, &[5]);
        assert_eq!(told.lines().count(), 4, "{told}");
        assert!(!told.contains("seq=1 ") && told.ends_with("refused"));
    }
}
