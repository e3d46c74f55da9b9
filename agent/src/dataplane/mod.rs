//! The dataplane: what should be in the kernel, what is, and the loop that makes
//! the one the other.
//!
//! Started by `main` with the watches of the other tasks; tells them how it goes by
//! a [`crate::state::DataplaneReport`]. It decides over plain data and touches the
//! kernel through one trait ([`kernel::Kernel`]), which the tests replace.

pub mod cycle;
pub mod diff;
pub mod endpoints;
pub mod hints;
pub mod host;
pub mod kernel;
pub mod objects;
pub mod pace;
pub mod patience;
pub mod plan;
pub mod reconciler;
pub mod rivals;

#[cfg(test)]
mod fake;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
