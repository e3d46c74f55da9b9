//! The one shape that every refusal of bad input has.

use thiserror::Error;

/// A value that is not allowed where it stands.
///
/// Reads as one sentence: what, where, why, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{object}: {field} {value:?} is not allowed: {allowed}")]
pub struct Invalid {
    /// The object that holds the field, such as `pool "default"` or `flag`.
    pub object: String,
    /// The field's name as the user writes it, such as `cidr` or `--iface`.
    pub field: &'static str,
    /// The value as it was given.
    pub value: String,
    /// Why it is refused and what would be taken.
    pub allowed: String,
}

impl Invalid {
    /// Builds the refusal of `value` in `field` of `object`.
    pub fn new(
        object: impl Into<String>,
        field: &'static str,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            object: object.into(),
            field,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}
