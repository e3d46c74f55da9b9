//! Kernels up to 5.7 spoil the checksum of VXLAN packets that are translated on their
//! way out (docs/adr/0084): there the tunnel computes checksums itself.
//!
//! `ethtool` does it, because the kernels that need it are older than the netlink
//! message that could. Called by [`super::NetlinkKernel`] when it sees a new tunnel.

use std::io::ErrorKind;
use std::process::Command;

/// The setting, by ethtool's name of the feature.
const FEATURE: &str = "tx-checksum-ip-generic";

/// Whether a kernel of this release (`uname -r`) needs it.
pub fn is_needed(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) <= (5, 7),
        // What cannot be read is no old kernel's.
        _ => false,
    }
}

/// Turns the offload off. The tunnel works without it unless something translates its
/// packets, so that a failure is told and stops nothing.
pub(super) fn turn_off(link: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let outcome = Command::new("ethtool")
        .args(["-K", link, FEATURE, "off"])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output();
    let why = match outcome {
        Ok(output) if output.status.success() => {
            tracing::info!(link, "{FEATURE} is off, as this kernel needs it");
            return;
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => "ethtool is not installed".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        link,
        %why,
        "this kernel spoils checksums of tunnelled packets that are masqueraded; turn the \
         offload off by `ethtool -K {link} {FEATURE} off`, or run Linux 5.8 or newer"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_up_to_5_7_need_it() {
        for old in ["4.19.0-26-amd64", "5.4.0-200-generic", "5.7.19", "3.10.0"] {
            assert!(is_needed(old), "{old}");
        }
        for new in [
            "5.8.0",
            "5.10.0-30-amd64",
            "6.1.0-13-cloud-amd64",
            "6.18.5",
            "10.0",
        ] {
            assert!(!is_needed(new), "{new}");
        }
        assert!(!is_needed("") && !is_needed("next"));
    }
}
