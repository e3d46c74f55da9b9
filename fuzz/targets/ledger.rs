//! A file of the ledger, and the address manager that begins with it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use viaduct_model::{
    AddressManager, AttachmentId, BlockService, Cidr, Endpoint, Family, addresses::COOL_DOWN,
};

/// The same with the link, a hash that no fuzzer guesses, put right, and its name.
fn put_right(text: &[u8]) -> Option<(Vec<u8>, String)> {
    let mut value: serde_json::Value = serde_json::from_slice(text).ok()?;
    let part = |name: &str| value.get(name).and_then(serde_json::Value::as_str);
    let id = AttachmentId::new(part("containerId")?, part("ifname")?).ok()?;
    value["link"] = id.link_name().into();
    Some((serde_json::to_vec(&value).ok()?, id.link_name()))
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Endpoint::parse(bytes, "via0123456789ab");
    let Some((text, stem)) = put_right(bytes) else {
        return;
    };
    let Ok(endpoint) = Endpoint::parse(&text, &stem) else {
        return;
    };
    let text = serde_json::to_vec(&endpoint).expect("a record cannot be written");
    assert_eq!(Endpoint::parse(&text, &stem).as_ref(), Ok(&endpoint));

    let mut manager = AddressManager::new(COOL_DOWN);
    manager.restore([&endpoint]);
    let block: Cidr = "10.64.0.0/26".parse().expect("a block");
    manager.set_blocks(&BTreeMap::from([(block, BlockService::Serving)]), 1);
    let other = AttachmentId::new("other", "eth0").expect("an id");
    if other == endpoint.id {
        return;
    }
    if let Ok(given) = manager.allocate(&other, Family::V4, 2) {
        assert!(!endpoint.addresses.contains(&given.address), "handed out twice");
    }
    manager.release(&endpoint.id, 3);
    manager.usage();
    manager.cooling(4);
});
