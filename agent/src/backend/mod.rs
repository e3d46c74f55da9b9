//! Backends: how pod traffic crosses the underlay. Each is a pure function from the
//! cluster to what the kernel should hold. A new backend is a file here and a line
//! in [`ALL`].

pub mod vxlan;

use crate::dataplane::endpoints;
use crate::dataplane::objects::Desired;
use crate::state::{Endpoints, NodeState};

/// A way to carry pod traffic.
#[derive(Debug)]
pub struct Backend {
    /// The name as `--backend` takes it.
    pub name: &'static str,
    /// Adds what it needs in the kernel, and what it refuses.
    pub desire: fn(&NodeState, &mut Desired),
}

/// Every backend.
pub const ALL: &[&Backend] = &[&vxlan::BACKEND];

/// The backend of this name.
pub fn by_name(name: &str) -> Option<&'static Backend> {
    ALL.iter().copied().find(|backend| backend.name == name)
}

impl Backend {
    /// All that the kernel should hold: the backend's and the endpoints' part.
    pub fn desired(&self, state: &NodeState, endpoints: &Endpoints) -> Desired {
        let mut desired = Desired {
            incomplete: !state.view.unreadable.is_empty(),
            ..Desired::default()
        };
        (self.desire)(state, &mut desired);
        endpoints::desire(endpoints, &mut desired);
        desired
    }
}
