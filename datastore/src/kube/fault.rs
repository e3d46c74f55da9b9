//! What a failed call to the API server means.

use std::time::Duration;

use kube::Error;
use kube::core::Status;

/// What went wrong, as far as it makes a difference.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    /// Not reached, or no proper answer.
    Unavailable {
        /// What was said.
        reason: String,
        /// Whether another connection may do better.
        broken: bool,
    },
    /// Too many requests: what was asked was not done, and may be asked again.
    Busy {
        /// When.
        after: Duration,
        /// What was said.
        reason: String,
    },
    /// Permissions are missing; the API server names verb and resource.
    Denied {
        /// What was said.
        reason: String,
    },
    /// The token or certificate is not good (any more).
    NotSignedIn {
        /// What was said.
        reason: String,
    },
    /// There is no such object.
    NoObject,
    /// There is no such kind of object: the definitions are not installed.
    NoKind,
    /// Create found the object there.
    Exists,
    /// The object was changed by somebody else.
    Conflict,
    /// The resource version is no longer remembered.
    Expired,
    /// The object is not one that the definition allows.
    Invalid {
        /// What was said.
        reason: String,
    },
}

/// Reads the meaning of an error.
pub(super) fn fault_of(error: &Error) -> Fault {
    match error {
        Error::Api(status) => of_status(status),
        Error::Auth(e) => Fault::NotSignedIn {
            reason: one_line(&chain(e)),
        },
        // It answered, but with what no API server says.
        Error::SerdeError(e) => Fault::Unavailable {
            reason: one_line(&format!("an answer that cannot be understood: {e}")),
            broken: false,
        },
        other => Fault::Unavailable {
            reason: one_line(&chain(other)),
            broken: true,
        },
    }
}

/// Reads the meaning of what the API server says of a failure.
pub(super) fn of_status(status: &Status) -> Fault {
    let reason = || one_line(&status.message);
    match (status.code, status.reason.as_str()) {
        (401, _) => Fault::NotSignedIn { reason: reason() },
        (403, _) => Fault::Denied { reason: reason() },
        (404, _) => {
            let details = status.details.as_ref();
            if details.is_some_and(|details| !details.name.is_empty()) {
                Fault::NoObject
            } else {
                Fault::NoKind
            }
        }
        (409, "AlreadyExists") => Fault::Exists,
        (409, _) => Fault::Conflict,
        (410, _) => Fault::Expired,
        (400 | 405 | 413 | 415 | 422, _) => Fault::Invalid { reason: reason() },
        (429, _) => {
            let details = status.details.as_ref();
            let seconds = details.map_or(0, |details| details.retry_after_seconds);
            Fault::Busy {
                after: Duration::from_secs(u64::from(seconds.max(1))),
                reason: reason(),
            }
        }
        (code, _) => Fault::Unavailable {
            reason: one_line(&format!("{code} {}", status.message)),
            broken: false,
        },
    }
}

/// An error with what lies beneath, where the words differ.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let said = e.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = e.source();
    }
    text
}

/// One line, of a length that fits one.
fn one_line(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(400)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: serde_json::Value) -> Fault {
        of_status(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn an_object_that_is_absent_is_told_from_a_kind_that_is() {
        let object =
            serde_json::json!({"code": 404, "reason": "NotFound", "details": {"name": "a"}});
        assert_eq!(fault(object), Fault::NoObject);
        let kind = serde_json::json!({"code": 404, "reason": "NotFound", "details": {}});
        assert_eq!(fault(kind), Fault::NoKind);
        let page = serde_json::json!({"code": 404, "message": "404 page not found"});
        assert_eq!(fault(page), Fault::NoKind);
    }

    #[test]
    fn conflicts_are_told_apart() {
        let exists = serde_json::json!({"code": 409, "reason": "AlreadyExists"});
        assert_eq!(fault(exists), Fault::Exists);
        let conflict = serde_json::json!({"code": 409, "reason": "Conflict"});
        assert_eq!(fault(conflict), Fault::Conflict);
    }

    #[test]
    fn a_busy_server_says_when_to_come_back() {
        let told = serde_json::json!({"code": 429, "message": "slow down", "details": {"retryAfterSeconds": 3}});
        let after = Duration::from_secs(3);
        assert!(matches!(fault(told), Fault::Busy { after: a, .. } if a == after));
        let silent = serde_json::json!({"code": 429});
        assert!(matches!(fault(silent), Fault::Busy { after, .. } if after.as_secs() == 1));
    }

    #[test]
    fn reasons_stay_on_one_line() {
        let long = serde_json::json!({"code": 403, "message": format!("a\nb{}", "x".repeat(1000))});
        let Fault::Denied { reason } = fault(long) else {
            panic!("denied is denied");
        };
        assert!(reason.starts_with("a b") && reason.len() == 400);
    }
}
