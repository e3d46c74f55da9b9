//! Whatever bytes come, reading a frame ends in a message or an error.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

use proptest::prelude::*;
use viaduct_cni::frame::{self, HEADER, MAX_FRAME};
use viaduct_cni::protocol::{PROTOCOL, Reply, Request, Verb};
use viaduct_model::AttachmentId;

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(payload in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = frame::decode::<Request>(&payload);
        let _ = frame::decode::<Reply>(&payload);
    }

    #[test]
    fn any_header_is_bounded(header in any::<[u8; HEADER]>()) {
        match frame::payload_length(header) {
            Ok(length) => prop_assert!(length <= MAX_FRAME),
            Err(_) => prop_assert!(u32::from_be_bytes(header) as usize > MAX_FRAME),
        }
    }

    #[test]
    fn a_request_survives_its_frame(
        container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}",
        ifname in "[a-z][a-z0-9]{0,14}",
        netns in ".{0,100}",
        pod in prop::option::of(".{0,40}"),
        add in any::<bool>(),
    ) {
        let request = Request {
            protocol: PROTOCOL,
            verb: if add { Verb::Add } else { Verb::Del },
            id: AttachmentId::new(&container, &ifname).unwrap(),
            network: "n".into(),
            netns,
            pod,
            wishes: Default::default(),
            previous: None,
        };
        let bytes = frame::encode(&request).unwrap();
        let mut header = [0; HEADER];
        header.copy_from_slice(&bytes[..HEADER]);
        prop_assert_eq!(frame::payload_length(header).unwrap(), bytes.len() - HEADER);
        prop_assert_eq!(frame::decode::<Request>(&bytes[HEADER..]).unwrap(), request);
    }
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let text = "x".repeat(MAX_FRAME);
    assert!(matches!(
        frame::encode(&text),
        Err(frame::FrameError::TooLong(_))
    ));
}
