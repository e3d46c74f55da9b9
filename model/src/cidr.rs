//! Address families and CIDR prefixes that are always normalised.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Invalid;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The length of a full address in bits: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The address with this numeric value; `value` must fit the family.
    pub fn address(self, value: u128) -> IpAddr {
        match self {
            // Truncation is the documented contract: the caller stays inside the family.
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(value as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(value)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The numeric value of an address, in the low bits.
pub fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// A CIDR prefix (RFC 4632, RFC 4291 section 2.3) whose host bits are zero.
///
/// `ipnetwork` keeps host bits, so that two spellings of one prefix differ;
/// this type normalises on the way in, which makes `==` and map keys safe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNetwork);

impl Cidr {
    /// The prefix of length `prefix_len` that holds `address`.
    ///
    /// # Errors
    /// When `prefix_len` is longer than the family's address.
    pub fn new(address: IpAddr, prefix_len: u8) -> Result<Self, Invalid> {
        let net = IpNetwork::new(address, prefix_len).map_err(|_| {
            Invalid::new(
                format!("CIDR {address}/{prefix_len}"),
                "prefix length",
                prefix_len,
                format!(
                    "0 to {} for {}",
                    Family::of(address).bits(),
                    Family::of(address)
                ),
            )
        })?;
        Ok(Self::normalised(net))
    }

    /// The prefix that holds this one address and no other (/32 or /128).
    pub fn host(address: IpAddr) -> Self {
        Self(IpNetwork::from(address))
    }

    fn normalised(net: IpNetwork) -> Self {
        // network() keeps the prefix length's validity, so `new` cannot fail here.
        Self(IpNetwork::new(net.network(), net.prefix()).unwrap_or(net))
    }

    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.0.ip())
    }

    /// The first address, which is the network address.
    pub fn first(&self) -> IpAddr {
        self.0.ip()
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.family().address(self.last_bits())
    }

    /// The first address's numeric value.
    pub fn first_bits(&self) -> u128 {
        to_bits(self.0.ip())
    }

    /// The last address's numeric value.
    pub fn last_bits(&self) -> u128 {
        self.first_bits() | self.host_mask()
    }

    fn host_mask(&self) -> u128 {
        match self.family().bits() - self.prefix_len() {
            128 => u128::MAX,
            n => (1u128 << n) - 1,
        }
    }

    /// The prefix length in bits.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix()
    }

    /// How many addresses it holds; saturates for `::/0`.
    pub fn size(&self) -> u128 {
        self.host_mask().saturating_add(1)
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// Whether the whole of `other` lies in it.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.family() == other.family()
            && self.prefix_len() <= other.prefix_len()
            && self.contains(other.first())
    }

    /// Whether the two share any address.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The record name of a block with this CIDR: `10.0.0.0-26`, and `-` for
    /// `:` in IPv6, so that it is one path element and a valid kube name.
    pub fn record_name(&self) -> String {
        let address = self.first().to_string().replace(':', "-");
        format!("{address}-{}", self.prefix_len())
    }

    /// Reads a block's record name back; `None` when it is not one.
    pub fn from_record_name(name: &str) -> Option<Self> {
        let (address, len) = name.rsplit_once('-')?;
        let address: IpAddr = if address.contains('.') {
            IpAddr::V4(address.parse().ok()?)
        } else {
            IpAddr::V6(address.replace('-', ":").parse().ok()?)
        };
        let cidr = Self::new(address, len.parse().ok()?).ok()?;
        (cidr.record_name() == name).then_some(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        let refuse = || {
            Invalid::new(
                "CIDR",
                "value",
                s,
                "an address and a prefix length, such as 10.64.0.0/16 or fd00:64::/48",
            )
        };
        // ipnetwork takes a bare address as a host prefix; a pool written so is a typo.
        // Nor is a netmask a prefix length, though it is taken for one there.
        let (_, len) = s.split_once('/').ok_or_else(refuse)?;
        if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        let net: IpNetwork = s.parse().map_err(|_| refuse())?;
        Ok(Self::normalised(net))
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn host_bits_are_dropped_so_that_spellings_are_equal() {
        assert_eq!(cidr("10.1.2.3/8"), cidr("10.0.0.0/8"));
        assert_eq!(cidr("fd00::7/64").to_string(), "fd00::/64");
    }

    #[test]
    fn bare_addresses_and_nonsense_are_refused() {
        for bad in [
            "10.0.0.1",
            "",
            "10.0.0.0/33",
            "fd00::/129",
            "x/8",
            "10.0.0.0/",
            "10.0.0.0/255.0.255.0",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "10.0.0/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn block_names_go_there_and_back() {
        for (text, name) in [
            ("10.64.0.0/26", "10.64.0.0-26"),
            ("fd00:64::40/122", "fd00-64--40-122"),
            ("fd00:64::/122", "fd00-64---122"),
        ] {
            assert_eq!(cidr(text).record_name(), name);
            assert_eq!(Cidr::from_record_name(name), Some(cidr(text)));
        }
        for bad in [
            "10.64.0.1-26",
            "10.64.0.0-33",
            "10.64.0.0",
            "-",
            "",
            "fd00--122",
        ] {
            assert_eq!(Cidr::from_record_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn cover_and_overlap() {
        assert!(cidr("10.0.0.0/8").covers(&cidr("10.9.0.0/16")));
        assert!(!cidr("10.9.0.0/16").covers(&cidr("10.0.0.0/8")));
        assert!(cidr("10.9.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.0.0.0/8").overlaps(&cidr("11.0.0.0/8")));
        assert!(!cidr("0.0.0.0/0").overlaps(&cidr("::/0")));
        assert_eq!(cidr("::/0").last_bits(), u128::MAX);
        assert_eq!(
            cidr("10.0.0.0/30").last(),
            "10.0.0.3".parse::<IpAddr>().unwrap()
        );
    }
}
