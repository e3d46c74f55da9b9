//! What can go wrong on a netlink socket, in one sentence each.

use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NlasIterator, parse_i32, parse_string};
use nix::errno::Errno;
use thiserror::Error;

/// Why a netlink request had no success.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("the kernel refused it: {}{}", errno.desc(), in_words(text))]
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's own words (extended acknowledgement); often empty.
        text: String,
    },
    /// A call on the socket itself failed.
    #[error("netlink socket: {call} failed: {}", errno.desc())]
    Socket {
        /// The system call.
        call: &'static str,
        /// Its error number.
        errno: Errno,
    },
    /// The kernel did not answer in time.
    #[error("netlink socket: no answer from the kernel within {0:?}")]
    Timeout(Duration),
    /// An answer that cannot be read.
    #[error("netlink socket: the kernel's answer cannot be read: {0}")]
    Malformed(String),
    /// Objects changed during every attempt to list them.
    #[error("netlink socket: the kernel's tables changed during each of {0} attempts to list them")]
    Interrupted(u32),
}

fn in_words(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({text})")
    }
}

impl NetlinkError {
    /// The error number with which the kernel refused the request.
    pub fn refusal(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether an addition found the object there already.
    pub fn already_there(&self) -> bool {
        self.refusal() == Some(Errno::EEXIST)
    }

    /// Whether a removal found nothing to remove.
    pub fn already_gone(&self) -> bool {
        matches!(
            self.refusal(),
            Some(
                Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::EADDRNOTAVAIL
            )
        )
    }
}

/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`: the kernel's words.
const ATTR_MSG: u16 = 1;
/// The error number and the header of the message it answers.
const ERROR_HEADER: usize = 4 + 16;

/// Reads an `NLMSG_ERROR` (or `NLMSG_DONE`) payload: `Ok` for an acknowledgement.
pub(super) fn parse_ack(flags: u16, payload: &[u8]) -> Result<(), NetlinkError> {
    let code = payload
        .get(..4)
        .and_then(|b| parse_i32(b).ok())
        .ok_or_else(|| NetlinkError::Malformed("an error without an error number".into()))?;
    if code == 0 {
        return Ok(());
    }
    let mut text = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        // Without NLM_F_CAPPED the whole request stands before the attributes.
        let skip = if flags & NLM_F_CAPPED == 0 {
            payload
                .get(4..8)
                .and_then(|b| b.try_into().ok())
                .map_or(ERROR_HEADER, |b| {
                    4 + (u32::from_ne_bytes(b) as usize).next_multiple_of(4)
                })
        } else {
            ERROR_HEADER
        };
        let tlvs = payload.get(skip..).unwrap_or_default();
        text = NlasIterator::new(tlvs)
            .filter_map(Result::ok)
            .find(|nla| nla.kind() == ATTR_MSG)
            .and_then(|nla| parse_string(nla.value()).ok())
            .unwrap_or_default();
    }
    Err(NetlinkError::Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(total: u32, body: &[u8], words: &str) -> Vec<u8> {
        let mut bytes = (-22i32).to_ne_bytes().to_vec();
        bytes.extend(total.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(body);
        let mut value = words.as_bytes().to_vec();
        value.push(0);
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(ATTR_MSG.to_ne_bytes());
        bytes.extend(&value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_kernels_words_are_found_with_and_without_the_request_before_them() {
        let want = Err(NetlinkError::Refused {
            errno: Errno::EINVAL,
            text: "Invalid prefix".into(),
        });
        let capped = refusal(60, &[], "Invalid prefix");
        assert_eq!(parse_ack(NLM_F_ACK_TLVS | NLM_F_CAPPED, &capped), want);
        let whole = refusal(22, &[9; 8], "Invalid prefix");
        assert_eq!(parse_ack(NLM_F_ACK_TLVS, &whole), want);
    }

    #[test]
    fn hostile_lengths_do_not_panic() {
        assert!(parse_ack(0, &[]).is_err());
        assert!(parse_ack(NLM_F_ACK_TLVS, &refusal(u32::MAX - 3, &[], "x")).is_err());
        assert_eq!(parse_ack(0, &[0; 20]), Ok(()));
    }

    #[test]
    fn a_refusal_reads_as_one_sentence() {
        let error = parse_ack(
            NLM_F_ACK_TLVS | NLM_F_CAPPED,
            &refusal(60, &[], "Device is not up"),
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel refused it: Invalid argument (Device is not up)"
        );
    }
}
