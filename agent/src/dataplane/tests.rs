//! The dataplane as a whole against a kernel in memory.

mod convergence;
mod cycles;
mod looping;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fake::{FakeKernel, World};
use super::objects::{Desired, LinkKind, LinkName};
use super::testing::{Cluster, endpoint};
use crate::backend::vxlan::BACKEND;
use crate::state::Endpoints;

/// A pod with its entry in the ledger.
fn one_pod(wired: bool) -> (Endpoints, LinkName) {
    let pod = endpoint("pod", "10.64.0.5", wired);
    let link: LinkName = pod.link.as_str().into();
    (Arc::new(BTreeMap::from([(pod.link.clone(), pod)])), link)
}

/// A kernel with that pod's link, bare.
fn with_pod(link: &LinkName) -> FakeKernel {
    let mut world = World::default();
    world.add_link(link, LinkKind::Veth);
    world.add_link("eth0", LinkKind::Veth).up = true;
    FakeKernel::with(world)
}

fn desired(cluster: &Cluster, endpoints: &Endpoints) -> Desired {
    BACKEND.desired(&cluster.state(), endpoints)
}
