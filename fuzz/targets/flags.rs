//! The values of flags: CIDRs, names, MACs, attachment ids, versions. Whatever is taken is
//! said again in a form that is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use viaduct_cni::version::CniVersion;
use viaduct_model::attachment::MAX_LINK_NAME;
use viaduct_model::{AttachmentId, Cidr, MacAddr, NodeName, PoolName};

fuzz_target!(|text: &str| {
    if let Ok(cidr) = text.parse::<Cidr>() {
        assert_eq!(cidr.to_string().parse(), Ok(cidr));
        assert_eq!(Cidr::from_record_name(&cidr.record_name()), Some(cidr));
        assert!(cidr.contains(cidr.first()) && cidr.contains(cidr.last()));
        assert!(cidr.covers(&cidr) && cidr.size() > 0 || cidr.prefix_len() == 0);
    }
    let _ = Cidr::from_record_name(text);
    if let Ok(mac) = text.parse::<MacAddr>() {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
    if let Ok(name) = text.parse::<NodeName>() {
        assert!(!name.as_str().contains('/'));
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    if let Ok(name) = text.parse::<PoolName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    let _ = CniVersion::parse(text);
    let (container, ifname) = text.split_once(' ').unwrap_or((text, "eth0"));
    if let Ok(id) = AttachmentId::new(container, ifname) {
        assert!(id.link_name().len() <= MAX_LINK_NAME && !id.link_name().contains('/'));
    }
});
