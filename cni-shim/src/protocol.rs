//! What the plugin and the agent tell each other: one request, one reply, each a
//! frame of JSON (see [`crate::frame`]).
//!
//! The two are upgraded one after the other, so unknown fields are ignored and
//! a change that an older side would misunderstand raises [`PROTOCOL`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use viaduct_model::{AttachmentId, MacAddr};

use crate::CniError;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// What the plugin asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Attach; comes with two descriptors: the network namespace, and an rtnetlink
    /// socket that was opened inside it.
    Add,
    /// Detach; comes with no descriptor.
    Del,
}

/// A request of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What to do.
    pub verb: Verb,
    /// To which attachment. The reader checks it with [`AttachmentId::new`].
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The network's name from the configuration.
    pub network: String,
    /// The namespace's path as the runtime named it; may be empty with DEL.
    #[serde(default)]
    pub netns: String,
    /// `namespace/name` of the Kubernetes pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// ADD is done.
    Wired(Wired),
    /// DEL is done.
    Gone,
    /// Neither is.
    Refused(CniError),
}

/// An attachment that works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wired {
    /// The host end's name.
    pub host_link: String,
    /// The host end's MAC.
    pub host_mac: MacAddr,
    /// The pod end's MAC.
    pub pod_mac: MacAddr,
    /// The MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The next hop of the pod's default route, at most one per family.
    pub gateways: Vec<IpAddr>,
}
