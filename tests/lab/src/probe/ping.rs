//! One ICMP echo, by the system's `ping`.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::environment::scaled;

/// IPv4 and ICMP headers: what a ping's size does not count.
const HEADERS: u32 = 28;

/// How to ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The length of the whole IP packet in bytes; 84, as everywhere, when absent.
    pub packet: Option<u32>,
    /// Whether fragmenting it is forbidden.
    pub dont_fragment: bool,
    /// How long to wait for the reply; longer on a slow machine.
    pub wait: Duration,
}

impl Default for Echo {
    fn default() -> Self {
        Self {
            packet: None,
            dont_fragment: false,
            wait: Duration::from_secs(1),
        }
    }
}

impl Echo {
    /// A packet of exactly this length that must arrive in one piece.
    pub fn whole(packet: u32) -> Self {
        Self {
            packet: Some(packet),
            dont_fragment: true,
            ..Self::default()
        }
    }

    fn args(self, to: IpAddr) -> Vec<String> {
        let mut args: Vec<String> = ["-n", "-q", "-c", "1", "-W"].map(str::to_owned).into();
        args.push(format!("{:.3}", scaled(self.wait).as_secs_f64()));
        if let Some(packet) = self.packet {
            args.extend(["-s".to_owned(), packet.saturating_sub(HEADERS).to_string()]);
        }
        if self.dont_fragment {
            args.extend(["-M".to_owned(), "do".to_owned()]);
        }
        args.push(to.to_string());
        args
    }
}

impl fmt::Display for Echo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packet {
            Some(packet) => write!(f, "ping of {packet} bytes")?,
            None => write!(f, "ping")?,
        }
        if self.dont_fragment {
            f.write_str(" that must not be fragmented")?;
        }
        Ok(())
    }
}

/// Pings `to` from the namespace `netns`, once.
///
/// # Errors
/// What `ping` said.
pub fn ping(netns: &Path, to: IpAddr, echo: Echo) -> Result<()> {
    let mut command = crate::command::command("ping");
    command.args(echo.args(to));
    let output = crate::netns::within(netns, move || {
        command
            .output()
            .map_err(|e| anyhow::anyhow!("ping (Debian: iputils-ping) cannot be started: {e}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    match said.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => anyhow::bail!("{line}"),
        None => anyhow::bail!("no reply within {:?}", scaled(echo.wait)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packets_length_counts_its_headers() {
        let args = Echo::whole(1450).args("10.0.0.1".parse().unwrap());
        assert_eq!(args.join(" "), "-n -q -c 1 -W 1.000 -s 1422 -M do 10.0.0.1");
    }
}
