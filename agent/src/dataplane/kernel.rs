//! The kernel as the reconciler sees it: something to list and something to change.

use thiserror::Error;

use super::objects::{Actual, LinkName};
use super::plan::Op;
use super::rivals::ForeignRoute;

/// Why the kernel could not be listed or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KernelError {
    /// The link that the object stands on is missing.
    #[error("link {0} is missing")]
    NoLink(LinkName),
    /// The kernel's own reason.
    #[error("{0}")]
    Refused(String),
}

/// A kernel, real or not. Its calls block.
pub trait Kernel: Send + 'static {
    /// Lists all that is ours.
    ///
    /// # Errors
    /// When the picture would be incomplete.
    fn dump(&mut self) -> Result<Actual, KernelError>;

    /// Lists the routes of the main table that are not ours. They may be many, so
    /// that this is not done at each look.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn foreign_routes(&mut self) -> Result<Vec<ForeignRoute>, KernelError>;

    /// Makes all changes in order and answers for each; a failure stops none of the
    /// others. What is so already counts as done.
    fn apply(&mut self, plan: &[Op]) -> Vec<Result<(), KernelError>>;
}
