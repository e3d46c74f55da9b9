//! What a runtime writes to the plugin's standard input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viaduct_cni::config::{NetConf, requested_version};
use viaduct_cni::previous::Previous;
use viaduct_cni::result;
use viaduct_model::AttachmentId;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(version) = requested_version(bytes) {
        let told = result::version_result(&version);
        assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok());
    }
    match NetConf::parse(bytes) {
        Ok(conf) => {
            let _ = conf.valid_attachments();
            if let (Some(previous), Ok(id)) =
                (&conf.previous_result, AttachmentId::new("c", "eth0"))
            {
                let _ = Previous::of(previous, &id, "/run/netns/c");
            }
        }
        // The runtime reads it, whatever came.
        Err(refused) => {
            let told = refused.error.to_json(refused.version);
            assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok());
        }
    }
});
