//! A file of the spool.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viaduct_cni::protocol::Request;
use viaduct_cni::spool::{file_name, parse};

fuzz_target!(|bytes: &[u8]| {
    let name = serde_json::from_slice::<Request>(bytes)
        .map_or_else(|_| "via0123456789ab.json".to_owned(), |r| file_name(&r.id));
    assert!(!name.contains('/'), "{name}");
    if let Ok(request) = parse(bytes, &name) {
        let text = serde_json::to_vec(&request).expect("a DEL cannot be written");
        assert_eq!(parse(&text, &name), Ok(request));
    }
});
