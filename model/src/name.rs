//! Names of records.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Invalid;

/// The longest record name in bytes: that of a DNS subdomain (RFC 1123), which
/// kube object names and so node names are.
pub const MAX_NAME: usize = 253;

const ALLOWED: &str = "1 to 253 lower-case letters, digits, '-' and '.', beginning and ending \
                       with a letter or digit (a DNS subdomain, RFC 1123)";

fn is_subdomain(s: &str) -> bool {
    let label = |l: &str| {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = l.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(f), Some(l)) if alnum(*f) && alnum(*l))
            && bytes.iter().all(|b| alnum(*b) || *b == b'-')
    };
    s.len() <= MAX_NAME && s.split('.').all(label)
}

macro_rules! record_name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        // Shared: one name stands in many records and maps, and views of the cluster are copied.
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Invalid;

            fn from_str(s: &str) -> Result<Self, Invalid> {
                if is_subdomain(s) {
                    return Ok(Self(s.into()));
                }
                let shown: String = s.chars().take(64).collect();
                let shown = if shown.len() < s.len() {
                    format!("{shown}... ({} bytes)", s.len())
                } else {
                    shown
                };
                Err(Invalid::new($what, "name", shown, ALLOWED))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

record_name!(
    /// The name of a node; in Kubernetes, that of its Node object.
    NodeName,
    "node"
);
record_name!(
    /// The name of a pool.
    PoolName,
    "pool"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_subdomains() {
        for good in [
            "n",
            "node-1",
            "ip-10-0-0-1.eu-west-1.compute.internal",
            "0a",
        ] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        let long = "a".repeat(300);
        for bad in [
            "", "a/b", "/", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", " a", "ä", &long,
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_refusal_of_a_long_name_stays_one_short_line() {
        let error = "a".repeat(300).parse::<NodeName>().unwrap_err().to_string();
        assert!(
            error.len() < 300 && error.contains("(300 bytes)"),
            "{error}"
        );
    }
}
