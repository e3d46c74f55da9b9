//! The two tables as the task sees them: what each should be, and what that follows
//! from. Pure decisions are [`masquerade`] and [`source_check`]; here are their inputs.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use tokio::sync::watch;

use super::ruleset::{Ruleset, TableFamily};
use super::{Options, masquerade, source_check};
use crate::state::{Endpoints, NodeState};

/// For how long no pod must have come or gone, so that many become one transaction, which is
/// not in the way of the next ADD. `rp_filter` holds a new pod to its address meanwhile.
const GATHER: Duration = Duration::from_millis(200);

/// One table and its inputs.
pub(super) trait Part: Send {
    /// Which table.
    const FAMILY: TableFamily;
    /// Whether it has the counter of what was dropped.
    const COUNTS: bool;

    /// Whether enough is known to touch the table.
    fn is_ready(&self) -> bool;

    /// The table as it should be now; `None` where there should be none.
    fn wanted(&mut self) -> Option<Ruleset>;

    /// Whether the last answer lacks something that will come by itself.
    fn is_waiting(&self) -> bool;

    /// Waits for a change of an input and says how long it must be quiet before it is acted
    /// upon; `None` when there will be none any more.
    fn changed(&mut self) -> impl Future<Output = Option<Duration>> + Send;
}

/// The table `inet viaduct`.
pub(super) struct Masquerade {
    options: Options,
    state: watch::Receiver<Option<NodeState>>,
}

impl Masquerade {
    pub(super) fn new(options: Options, state: watch::Receiver<Option<NodeState>>) -> Self {
        Self { options, state }
    }
}

impl Part for Masquerade {
    const FAMILY: TableFamily = TableFamily::Inet;
    const COUNTS: bool = false;

    fn is_ready(&self) -> bool {
        self.state.borrow().is_some()
    }

    fn wanted(&mut self) -> Option<Ruleset> {
        let state = self.state.borrow_and_update();
        masquerade::desired(state.as_ref()?, &self.options)
    }

    fn is_waiting(&self) -> bool {
        false
    }

    /// Mostly compared and found to change nothing here. What does is about addresses
    /// that pods may have at any moment.
    async fn changed(&mut self) -> Option<Duration> {
        self.state.changed().await.ok().map(|()| Duration::ZERO)
    }
}

/// The table `netdev viaduct`.
pub(super) struct SourceCheck {
    endpoints: watch::Receiver<Endpoints>,
    /// Whether a wired pod's device was not there.
    lacks: bool,
}

impl SourceCheck {
    pub(super) fn new(endpoints: watch::Receiver<Endpoints>) -> Self {
        let lacks = false;
        Self { endpoints, lacks }
    }
}

impl Part for SourceCheck {
    const FAMILY: TableFamily = TableFamily::Netdev;
    const COUNTS: bool = true;

    fn is_ready(&self) -> bool {
        true
    }

    fn wanted(&mut self) -> Option<Ruleset> {
        let endpoints = self.endpoints.borrow_and_update();
        let mut indices = BTreeMap::new();
        self.lacks = false;
        for endpoint in source_check::judged(&endpoints) {
            match if_nametoindex(endpoint.link.as_str()) {
                Ok(index) => {
                    indices.insert(endpoint.link.clone(), index);
                }
                Err(_) => self.lacks = true,
            }
        }
        Some(source_check::desired(&endpoints, &indices))
    }

    fn is_waiting(&self) -> bool {
        self.lacks
    }

    async fn changed(&mut self) -> Option<Duration> {
        self.endpoints.changed().await.ok().map(|()| GATHER)
    }
}
