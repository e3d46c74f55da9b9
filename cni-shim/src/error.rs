//! Errors as the CNI specification has them: a code, a sentence, details.

use serde::{Deserialize, Serialize};

use crate::version::CniVersion;

/// A refusal with one of the specification's codes. Also what the agent answers
/// when it cannot do what the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg} (code {code})")]
pub struct CniError {
    /// The specification's code, or 100 and above for our own.
    pub code: u32,
    /// One sentence: what, which object, why.
    pub msg: String,
    /// What is allowed or what to do, and the cause in full.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// The configuration's `cniVersion` is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration holds a field that is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// An environment variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// The input could not be decoded.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration is not valid.
    pub const INVALID_CONFIG: u32 = 7;
    /// The container is not known; nothing of it needs to be cleaned up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// The runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: no container can be attached now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the same, and attached containers may not reach everything either.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Ours: the kernel refused what the attachment needs.
    pub const KERNEL_REFUSED: u32 = 100;
    /// Ours: plugin and agent do not understand each other.
    pub const PROTOCOL: u32 = 101;
    /// Ours: the agent's own records contradict the request.
    pub const CONFLICT: u32 = 102;

    /// Ours: CHECK found an attachment to be other than it should be.
    pub const CHECK_FAILED: u32 = 103;

    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The error as the plugin prints it on standard output.
    pub fn to_json(&self, version: CniVersion) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: CniVersion,
            #[serde(flatten)]
            error: &'a CniError,
        }
        serde_json::to_string(&Printed {
            cni_version: version,
            error: self,
        })
        .unwrap_or_else(|_| format!("{{\"code\":{},\"msg\":\"unprintable\"}}", self.code))
    }
}
