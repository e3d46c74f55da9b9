//! The kernel's side of the agent: the only place where netlink messages live.
//!
//! Everything outside speaks in plain data (`crate::dataplane::model`); this
//! module turns it into messages and the kernel's answers back. It must never
//! decide what should be there.

pub mod error;
pub mod options;
pub mod socket;
pub mod survey;
pub mod veth;

pub use error::NetlinkError;
pub use socket::{NetlinkSocket, Request};
