//! What comes on the agent's socket, and what an agent answers the plugin.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use viaduct_cni::frame::{HEADER, MAX_FRAME, decode, encode, payload_length};
use viaduct_cni::protocol::{AddressRequest, NetworkRequest, Reply, Request};

/// What is understood is said in the same words again.
fn same<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(payload: &[u8]) {
    let Ok(message) = decode::<T>(payload) else {
        return;
    };
    // What was short may be long once unknown bytes are escaped.
    if let Ok(frame) = encode(&message) {
        let again: T = decode(&frame[HEADER..]).expect("what was said cannot be understood");
        assert_eq!(message, again);
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Some((header, payload)) = bytes.split_first_chunk::<HEADER>()
        && let Ok(length) = payload_length(*header)
    {
        assert!(length <= MAX_FRAME);
        let payload = payload.get(..length).unwrap_or(payload);
        same::<Request>(payload);
        same::<NetworkRequest>(payload);
        same::<AddressRequest>(payload);
        same::<Reply>(payload);
        let _ = decode::<Value>(payload);
    }
});
