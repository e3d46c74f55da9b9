//! What users say about one pod: CNI_ARGS in the environment (first line), and the capabilities
//! that runtimes make of annotations (the rest, a configuration).
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use viaduct_cni::invocation::{Command, from_env};
use viaduct_cni::wishes::Wishes;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (args, config) = bytes.split_at(end);
    let env = |name: &str| -> Option<OsString> {
        Some(match name {
            "CNI_COMMAND" => "ADD".into(),
            "CNI_CONTAINERID" => "c1".into(),
            "CNI_NETNS" => "/run/netns/c1".into(),
            "CNI_IFNAME" => "eth0".into(),
            "CNI_PATH" => "/opt/cni/bin".into(),
            "CNI_ARGS" => OsString::from_vec(args.to_vec()),
            _ => return None,
        })
    };
    let args = match from_env(env) {
        Ok(Some(Command::Add(attachment))) => attachment.args,
        _ => Vec::new(),
    };
    let config = serde_json::from_slice(config).unwrap_or_default();
    if let Ok(wishes) = Wishes::read(&config, &args) {
        let text = serde_json::to_vec(&wishes).expect("wishes cannot be written");
        assert_eq!(wishes, serde_json::from_slice(&text).expect("nor read"));
    }
});
