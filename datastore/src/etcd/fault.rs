//! What a failed call to etcd means.

use std::error::Error as _;

use etcd_client::Error;
use tonic::Code;
use viaduct_model::Invalid;

/// What went wrong, as far as it makes a difference.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Not reached, or no proper answer; `sent` when etcd may have acted on it.
    Unavailable { reason: String, sent: bool },
    /// Permissions, a wrong password.
    Refused { reason: String },
    /// The token is not good, or none was sent.
    NotSignedIn { reason: String },
    /// The lease does not exist.
    LeaseGone,
    /// The revision is no longer remembered.
    Compacted,
}

impl Fault {
    /// A file that could be read at start cannot be read now.
    pub(super) fn unreadable(e: Invalid) -> Self {
        Fault::Refused {
            reason: e.to_string(),
        }
    }
}

/// Reads the meaning of an error.
pub(super) fn fault_of(e: &Error) -> Fault {
    match e {
        Error::GRpcStatus(status) => {
            let mut reason = status.message().to_owned();
            causes(status.source(), &mut reason);
            of_status(status.code(), reason)
        }
        Error::LeaseKeepAliveError(text) if text.contains("not found") => Fault::LeaseGone,
        Error::TransportError(e) => {
            let mut reason = e.to_string();
            causes(e.source(), &mut reason);
            unavailable(reason)
        }
        other => unavailable(other.to_string()),
    }
}

fn of_status(code: Code, reason: String) -> Fault {
    match code {
        Code::Unauthenticated => Fault::NotSignedIn { reason },
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unknown
            if reason.contains("user name is empty")
                || reason.contains("invalid auth token")
                || reason.contains("revision of auth store is old") =>
        {
            Fault::NotSignedIn { reason }
        }
        Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented => Fault::Refused { reason },
        Code::NotFound if reason.contains("lease") => Fault::LeaseGone,
        Code::OutOfRange if reason.contains("compacted") => Fault::Compacted,
        _ => unavailable(reason),
    }
}

fn unavailable(reason: String) -> Fault {
    let sent = !reason.contains("connect error") && !reason.contains("Connect");
    // One line, of a length that fits one.
    let reason: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    Fault::Unavailable { reason, sent }
}

/// Adds what lies beneath, where the words differ: tonic says "transport error"
/// for all of it and hides the cause below.
fn causes(mut cause: Option<&(dyn std::error::Error + 'static)>, reason: &mut String) {
    while let Some(e) = cause {
        let text = e.to_string();
        if !reason.contains(&text) {
            if !reason.is_empty() {
                reason.push_str(": ");
            }
            reason.push_str(&text);
        }
        cause = e.source();
    }
}
