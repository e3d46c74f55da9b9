//! The alternatives that Viaduct is measured beside: made here by hand or taken
//! from the system, with nothing in them that would slow them down.

pub(crate) mod batch;
pub(crate) mod network;
pub(crate) mod ptp;
pub(crate) mod vxlan;
