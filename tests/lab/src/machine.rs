//! The lab on a whole machine: where a (virtual) machine was started for nothing
//! else, its own network is the lab's, and no namespaces of one's own are needed.
//!
//! Must never be called on a machine that somebody uses otherwise.

use anyhow::{Context, Result};

use crate::control::Control;
use crate::{lab, netns};

/// Takes this machine for a [`Node`](crate::Node) or a [`Lab`](crate::Lab): makes the
/// directories and shows the programs under test.
///
/// # Errors
/// Names what is missing.
pub fn take() -> Result<Control> {
    std::fs::create_dir_all(netns::DIR).context(netns::DIR)?;
    lab::prepare()?;
    Control::of_nobody()
}
