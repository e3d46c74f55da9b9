//! What the plugin and the agent tell each other: one request, one reply, each a
//! frame of JSON (see [`crate::frame`]).
//!
//! The two are upgraded one after the other, so unknown fields are ignored and
//! a change that an older side would misunderstand raises [`PROTOCOL`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use viaduct_model::{AttachmentId, MacAddr};

use crate::CniError;
use crate::previous::Previous;
use crate::wishes::Wishes;

/// The version of this protocol.
pub const PROTOCOL: u32 = 1;

/// What the plugin asks for about one attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Attach; comes with two descriptors: the network namespace, and an rtnetlink
    /// socket that was opened inside it.
    Add,
    /// Detach; comes with no descriptor.
    Del,
    /// Compare with what it should be; comes with the descriptors of ADD.
    Check,
}

/// What the plugin asks for about a whole network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkVerb {
    /// Remove the attachments that are not to be kept.
    Gc,
    /// Say whether pods can be attached.
    Status,
}

/// A request of the plugin about a whole network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRequest {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What to do.
    pub verb: NetworkVerb,
    /// The network's name from the configuration.
    pub network: String,
    /// With GC, what is to be kept, by the names of the host ends
    /// ([`AttachmentId::link_name`]): short, so that thousands fit a frame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
}

/// A question about one address, which `viaductctl ipam show` asks; it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressRequest {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The address in question.
    pub address: IpAddr,
}

/// What an agent knows of one address. Times are told as ages, since no clock of one
/// machine means anything on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressState {
    /// The address.
    pub address: IpAddr,
    /// The agent's node, once it knows it from the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node's block that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<String>,
    /// Whether it is never handed out: reserved in its pool, or the node's own.
    #[serde(default)]
    pub reserved: bool,
    /// Who has it; more than one only where the ledger holds what cannot be.
    #[serde(default)]
    pub holders: Vec<Holder>,
    /// For how long it has rested, in milliseconds, if it was given back since the agent's
    /// start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rested_ms: Option<u64>,
    /// For how long it cools down still, in milliseconds.
    #[serde(default)]
    pub cools_ms: u64,
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The attachment.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The network's name from the configuration.
    pub network: String,
    /// The host end's name.
    pub link: String,
    /// `namespace/name` of the Kubernetes pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Whether it is wired; else an ADD or a DEL is under way, or was cut off.
    pub wired: bool,
    /// For how long it has had the address, in milliseconds.
    pub for_ms: u64,
}

/// A request of the plugin about one attachment.
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
    /// What ADD is to give the pod.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub wishes: Wishes,
    /// With CHECK, what the runtime was told of the attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// ADD is done.
    Wired(Wired),
    /// DEL is done.
    Gone,
    /// CHECK found nothing wrong, GC has removed all that it had to, or STATUS is well.
    Fine,
    /// What is known of an address.
    Address(AddressState),
    /// It is not done, and why.
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
    /// Whether another interface of the pod has its default route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secondary: bool,
}
