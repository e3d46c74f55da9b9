//! Attachments: a pod's interface as CNI asked for it, and its record in the
//! agent's ledger.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Invalid, MacAddr, mac};

/// The prefix of every device name that is ours.
pub const LINK_PREFIX: &str = "via";

/// The longest device name in bytes (`IFNAMSIZ` less the terminating zero).
pub const MAX_LINK_NAME: usize = 15;

/// What names an attachment: the container and the interface inside it
/// (CNI spec, section 2: `CNI_CONTAINERID` and `CNI_IFNAME`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// The container's id as the runtime gave it.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
}

impl AttachmentId {
    /// Checks both parts as the CNI spec defines them.
    ///
    /// # Errors
    /// Names `CNI_CONTAINERID` or `CNI_IFNAME` and what is allowed there.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, Invalid> {
        let id_ok = container_id
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
            && container_id.len() <= 1024
            && container_id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !id_ok {
            return Err(Invalid::new(
                "CNI",
                "CNI_CONTAINERID",
                container_id.chars().take(64).collect::<String>(),
                "1 to 1024 letters, digits, '_', '.' and '-', beginning with a letter or digit",
            ));
        }
        let if_ok = !ifname.is_empty()
            && ifname.len() <= MAX_LINK_NAME
            && ifname != "."
            && ifname != ".."
            && ifname
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if !if_ok {
            return Err(Invalid::new(
                "CNI",
                "CNI_IFNAME",
                ifname.chars().take(64).collect::<String>(),
                "1 to 15 printable characters without '/', ':' and spaces",
            ));
        }
        Ok(Self {
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        })
    }

    /// The name of the host end: `via` and 12 hexadecimal digits of a hash.
    pub fn link_name(&self) -> String {
        let hash = mac::stable_hash("link", &self.to_string());
        format!("{LINK_PREFIX}{:012x}", hash & 0xffff_ffff_ffff)
    }

    /// The pod end's MAC, derived so that both ends' neighbour entries can be
    /// written without reading anything back.
    pub fn pod_mac(&self) -> MacAddr {
        MacAddr::derived("pod", &self.to_string())
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// An attachment in the agent's ledger: one JSON file each in
/// `<run-dir>/endpoints/`, written before the address is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Whose interface this is.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// The network's name from the CNI configuration.
    pub network: String,
    /// The path of the network namespace as the runtime named it.
    pub netns: String,
    /// Identifies the namespace itself (device and inode of its nsfs file), since
    /// a path can come to mean another namespace.
    pub netns_id: (u64, u64),
    /// The host end's device name.
    pub link: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod end's MAC.
    pub pod_mac: MacAddr,
    /// The MTU that the pod's interface was given, in bytes.
    pub mtu: u32,
    /// When the addresses were allocated, in milliseconds of the boot-time clock
    /// (`CLOCK_BOOTTIME`); orders reuse after a restart.
    pub allocated_at: u64,
    /// Whether the kernel was wired completely. A record that says `false` was cut
    /// off in ADD: its address is taken, nothing else about it is promised.
    pub wired: bool,
    /// Whether another interface of the same container has the default route: then
    /// this one's packets leave by a table of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secondary: bool,
    /// The pod as Kubernetes names it, from `CNI_ARGS`; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl Endpoint {
    /// An attachment of which nothing is known but whose it is: it has no address yet and
    /// nothing was wired.
    pub fn bare(id: AttachmentId) -> Self {
        Self {
            network: String::new(),
            netns: String::new(),
            netns_id: (0, 0),
            link: id.link_name(),
            addresses: Vec::new(),
            pod_mac: id.pod_mac(),
            mtu: 0,
            allocated_at: 0,
            wired: false,
            secondary: false,
            pod: None,
            id,
        }
    }

    /// Reads a record of the ledger, checked against the name of its file without `.json`,
    /// which is its link's.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8], stem: &str) -> Result<Self, String> {
        let endpoint: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        AttachmentId::new(&endpoint.id.container_id, &endpoint.id.ifname)
            .map_err(|e| e.to_string())?;
        if endpoint.link != stem || endpoint.id.link_name() != stem {
            return Err(format!(
                "it is about {}, whose link is {}",
                endpoint.id,
                endpoint.id.link_name()
            ));
        }
        if endpoint.addresses.is_empty() {
            return Err("it holds no address".to_owned());
        }
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_the_kernel_and_are_stable() {
        let id = AttachmentId::new("0123456789abcdef", "eth0").unwrap();
        let name = id.link_name();
        assert_eq!(name.len(), MAX_LINK_NAME);
        assert!(name.starts_with("via"));
        assert_eq!(name, id.link_name());
        assert_ne!(
            name,
            AttachmentId::new("0123456789abcdef", "eth1")
                .unwrap()
                .link_name()
        );
    }

    #[test]
    fn hostile_ids_are_refused() {
        let long = "a".repeat(2000);
        for bad in ["", "../x", "a/b", "-a", "a b", "ä", &long] {
            assert_eq!(
                AttachmentId::new(bad, "eth0").unwrap_err().field,
                "CNI_CONTAINERID"
            );
        }
        for bad in [
            "",
            "averyveryverylongname",
            "a/b",
            "a b",
            ".",
            "..",
            "a:b",
            "e\u{7f}",
        ] {
            assert_eq!(AttachmentId::new("c", bad).unwrap_err().field, "CNI_IFNAME");
        }
    }
}
