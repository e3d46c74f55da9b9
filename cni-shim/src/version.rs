//! The versions of the CNI specification that the plugin speaks.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::CniError;

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// 0.3.1
    V0_3_1,
    /// 0.4.0
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0
    V1_1_0,
}

impl CniVersion {
    /// All that the plugin supports, oldest first.
    pub const ALL: [CniVersion; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest, spoken when the configuration names none that is known.
    pub const NEWEST: CniVersion = Self::V1_1_0;

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Finds the version that a configuration names.
    ///
    /// # Errors
    /// Code 1, with the versions that are supported.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL
            .into_iter()
            .find(|v| v.as_str() == text)
            .ok_or_else(|| {
                CniError::new(
                    CniError::INCOMPATIBLE_VERSION,
                    format!("cniVersion {text:?} is not supported by viaduct"),
                )
                .with_details("supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0")
            })
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CniVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_version_parses_and_others_are_refused_with_code_1() {
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::parse(version.as_str()), Ok(version));
        }
        for other in ["", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", " 1.0.0"] {
            let error = CniVersion::parse(other).unwrap_err();
            assert_eq!(error.code, 1, "{other}");
            assert!(error.details.contains("1.1.0"), "{error:?}");
        }
    }
}
