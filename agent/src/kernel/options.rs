//! The socket options of netlink(7) that `nix` has no names for.
//!
//! They are defined by nix's own macro, so that no unsafe code is needed here.

use nix::{libc, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// The kernel says in words what it refuses (`NETLINK_EXT_ACK`).
    ExtendedAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_EXT_ACK,
    bool
);
sockopt_impl!(
    /// An error does not repeat the message that it answers (`NETLINK_CAP_ACK`).
    CappedAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_CAP_ACK,
    bool
);
sockopt_impl!(
    /// The kernel applies the filters in dump requests (`NETLINK_GET_STRICT_CHK`).
    StrictCheck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_GET_STRICT_CHK,
    bool
);
sockopt_impl!(
    /// Joins a multicast group by its number (`NETLINK_ADD_MEMBERSHIP`).
    AddMembership,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_ADD_MEMBERSHIP,
    u32
);
