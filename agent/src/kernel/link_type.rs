//! Whether the kernel can make links of a kind: asked at start, so that what is missing
//! is one clear sentence and not a failure that is tried again for ever.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::{NetlinkError, NetlinkSocket, Request};

/// The name of the link that is asked for and never made; ours, should that ever fail.
const PROBE: &str = "via.probe";

/// `IFLA_IPTUN_PROTO` of `linux/if_tunnel.h`.
const IPTUN_PROTO: u16 = 9;

/// A kind of link that the kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    /// VXLAN.
    Vxlan,
    /// IPv4 in IPv4.
    Ipip,
}

impl LinkType {
    /// The kernel module that has it.
    pub fn module(self) -> &'static str {
        match self {
            LinkType::Vxlan => "vxlan",
            LinkType::Ipip => "ipip",
        }
    }

    /// Asks the kernel, which loads the module if it may. Nothing is made: the request
    /// is one that only who knows the kind can find wrong.
    ///
    /// # Errors
    /// What the socket suffers.
    pub fn is_known(self, socket: &mut NetlinkSocket) -> Result<bool, NetlinkError> {
        let info = match self {
            // A VXLAN link needs parameters, and these are none.
            LinkType::Vxlan => vec![LinkInfo::Kind(InfoKind::Vxlan)],
            // Such a tunnel can carry IPv4 and MPLS, and no protocol 255.
            LinkType::Ipip => vec![
                LinkInfo::Kind(InfoKind::IpIp),
                LinkInfo::Data(InfoData::IpTunnel(vec![InfoIpTunnel::Other(
                    DefaultNla::new(IPTUN_PROTO, vec![255]),
                )])),
            ],
        };
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(PROBE.into()),
            LinkAttribute::LinkInfo(info),
        ];
        let request = Request::new(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
        match socket.execute_one(request) {
            // "Unknown device type".
            Err(error) if error.refusal() == Some(Errno::EOPNOTSUPP) => Ok(false),
            Err(error) if error.refusal().is_none() => Err(error),
            Ok(()) | Err(_) => Ok(true),
        }
    }
}
