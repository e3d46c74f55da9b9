use super::*;

fn id(n: u32) -> AttachmentId {
    AttachmentId::new(&format!("c{n}"), "eth0").unwrap()
}

fn cidr(s: &str) -> Cidr {
    s.parse().unwrap()
}

fn manager(blocks: &[&str], reserved: &[&str]) -> AddressManager {
    let mut manager = AddressManager::default();
    manager.set_reserved(reserved.iter().map(|r| cidr(r)).collect());
    for block in blocks {
        manager.put_block(cidr(block), BlockService::Serving, 0);
    }
    manager
}

fn take(manager: &mut AddressManager, n: u32, now_ms: u64) -> String {
    let got = manager.allocate(&id(n), Family::V4, now_ms).unwrap();
    assert!(!got.existing);
    got.address.to_string()
}

fn endpoint(n: u32, address: &str, allocated_at: u64) -> Endpoint {
    Endpoint {
        addresses: vec![address.parse().unwrap()],
        allocated_at,
        wired: true,
        ..Endpoint::bare(id(n))
    }
}

#[test]
fn never_used_addresses_come_first_and_reserved_ones_never() {
    let mut m = manager(&["10.0.0.0/29"], &["10.0.0.0/32", "10.0.0.4/31"]);
    let first: Vec<String> = (0..3).map(|n| take(&mut m, n, 0)).collect();
    assert_eq!(first, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    m.release(&id(0), 1);
    // .1 is free but was used; .6 and .7 never were.
    assert_eq!(take(&mut m, 3, 90_000), "10.0.0.6");
    assert_eq!(take(&mut m, 4, 90_000), "10.0.0.7");
    assert_eq!(take(&mut m, 5, 90_000), "10.0.0.1");
    assert_eq!(
        m.allocate(&id(6), Family::V4, 90_000),
        Err(AllocateError::Full {
            family: Family::V4,
            blocks: 1,
            used: 5
        })
    );
    assert_eq!(m.early_reuses(), 0);
}

#[test]
fn an_owner_keeps_the_address_that_it_has() {
    let mut m = manager(&["10.0.0.0/30"], &[]);
    let address = take(&mut m, 1, 0);
    let again = m.allocate(&id(1), Family::V4, 5).unwrap();
    assert_eq!((again.address.to_string(), again.existing), (address, true));
    m.put_block(cidr("10.0.0.0/30"), BlockService::Draining, 0);
    assert!(m.allocate(&id(1), Family::V4, 5).unwrap().existing);
    assert_eq!(m.release(&id(1), 6).len(), 1);
    assert_eq!(m.release(&id(1), 6).len(), 0);
}

#[test]
fn the_longest_released_comes_first_and_early_only_in_need() {
    let mut m = manager(&["10.0.0.0/30"], &[]);
    for n in 0..4 {
        take(&mut m, n, 0);
    }
    for (n, at) in [(2, 1_000), (0, 2_000), (3, 3_000)] {
        m.release(&id(n), at);
    }
    let got = m.allocate(&id(10), Family::V4, 31_000).unwrap();
    assert_eq!(
        (got.address.to_string().as_str(), got.early),
        ("10.0.0.2", false)
    );
    let got = m.allocate(&id(11), Family::V4, 31_000).unwrap();
    assert_eq!(
        (got.address.to_string().as_str(), got.early),
        ("10.0.0.0", true)
    );
    assert_eq!(m.early_reuses(), 1);
}

#[test]
fn refusals_say_what_is_missing() {
    let mut m = manager(&[], &[]);
    let refuse = |m: &mut AddressManager, family| m.allocate(&id(0), family, 0).unwrap_err();
    assert_eq!(
        refuse(&mut m, Family::V4),
        AllocateError::NoBlock { family: Family::V4 }
    );
    m.put_block(cidr("10.0.0.0/30"), BlockService::Draining, 0);
    assert_eq!(
        refuse(&mut m, Family::V4),
        AllocateError::AllDraining {
            family: Family::V4,
            blocks: 1
        }
    );
    let error = refuse(&mut m, Family::V6).to_string();
    assert!(error.contains("IPv6"), "{error}");
}

#[test]
fn a_lost_block_keeps_its_pods_and_a_regained_one_remembers() {
    let block = cidr("10.0.0.0/30");
    let mut m = manager(&["10.0.0.0/30"], &[]);
    assert_eq!(take(&mut m, 0, 0), "10.0.0.0");
    assert_eq!(take(&mut m, 1, 0), "10.0.0.1");
    m.release(&id(1), 1_000);
    m.remove_block(&block, 2_000);
    assert!(m.usage().is_empty() && m.is_in_use("10.0.0.0".parse().unwrap()));
    m.release(&id(0), 3_000);
    m.put_block(block, BlockService::Serving, 4_000);
    // Both rest still, so the fresh ones come first and then the longest rested.
    assert_eq!(take(&mut m, 2, 4_000), "10.0.0.2");
    assert_eq!(take(&mut m, 3, 4_000), "10.0.0.3");
    let got = m.allocate(&id(4), Family::V4, 4_000).unwrap();
    assert_eq!(
        (got.address.to_string().as_str(), got.early),
        ("10.0.0.1", true)
    );
}

#[test]
fn the_rotation_goes_on_behind_the_newest_after_a_restart() {
    for ledger_first in [true, false] {
        let mut m = AddressManager::default();
        let ledger = [endpoint(1, "10.0.0.5", 700), endpoint(2, "10.0.0.2", 900)];
        if ledger_first {
            m.restore(&ledger);
        }
        m.put_block(cidr("10.0.0.0/29"), BlockService::Serving, 1_000);
        if !ledger_first {
            m.restore(&ledger);
        }
        let order: Vec<String> = (10..16).map(|n| take(&mut m, n, 1_000)).collect();
        let expected = [
            "10.0.0.3", "10.0.0.4", "10.0.0.6", "10.0.0.7", "10.0.0.0", "10.0.0.1",
        ];
        assert_eq!(order, expected);
        assert!(m.allocate(&id(99), Family::V4, 1_000).is_err());
        assert_eq!(
            m.addresses_of(&id(1)),
            ["10.0.0.5".parse::<IpAddr>().unwrap()]
        );
    }
}

#[test]
fn an_address_that_two_ledger_records_claim_is_free_when_both_let_go() {
    let mut m = manager(&["10.0.0.0/31"], &[]);
    m.restore(&[endpoint(1, "10.0.0.0", 1), endpoint(2, "10.0.0.0", 2)]);
    m.release(&id(1), 10);
    assert_eq!(take(&mut m, 3, 90_000), "10.0.0.1");
    assert!(m.allocate(&id(4), Family::V4, 90_000).is_err());
    m.release(&id(2), 90_000);
    assert_eq!(take(&mut m, 4, 190_000), "10.0.0.0");
}

#[test]
fn usage_leaves_reserved_addresses_out_and_follows_changes() {
    let mut m = manager(&["10.0.0.0/26"], &["10.0.0.0/32"]);
    let usage = |m: &AddressManager| m.usage()[&cidr("10.0.0.0/26")];
    assert_eq!(usage(&m), BlockUsage { used: 0, free: 63 });
    assert_eq!(take(&mut m, 0, 0), "10.0.0.1");
    assert_eq!(usage(&m), BlockUsage { used: 1, free: 62 });
    // Reserving a used address leaves it to its pod and takes nothing from the free.
    m.set_reserved([cidr("10.0.0.0/31")].into());
    assert_eq!(usage(&m), BlockUsage { used: 1, free: 62 });
    m.release(&id(0), 0);
    assert_eq!(usage(&m), BlockUsage { used: 0, free: 62 });
    m.set_reserved([cidr("10.0.0.0/32")].into());
    assert_eq!(usage(&m), BlockUsage { used: 0, free: 63 });
    // .1 rests, so it comes last.
    assert_eq!(take(&mut m, 1, 0), "10.0.0.2");
}

#[test]
fn overlapping_blocks_of_a_broken_store_never_share_an_address_out_twice() {
    let mut m = manager(&["10.0.0.0/30", "10.0.0.0/31"], &[]);
    let mut seen = BTreeSet::new();
    for round in 0..3u64 {
        for n in 0..4 {
            let address = take(&mut m, n, round * 100_000);
            assert!(seen.insert(address));
        }
        assert!(m.allocate(&id(9), Family::V4, 0).is_err());
        for n in 0..4 {
            m.release(&id(n), round * 100_000);
        }
        seen.clear();
    }
}

#[test]
fn both_families_side_by_side() {
    let mut m = manager(&["10.0.0.0/30", "fd00::/122"], &[]);
    take(&mut m, 0, 0);
    let v6 = m.allocate(&id(0), Family::V6, 0).unwrap();
    assert_eq!(v6.address.to_string(), "fd00::");
    assert_eq!(m.addresses_of(&id(0)).len(), 2);
    assert_eq!(m.serving_usage(Family::V6)[&cidr("fd00::/122")].free, 63);
    assert_eq!(m.release(&id(0), 0).len(), 2);
}

#[test]
fn an_address_by_name_is_had_if_it_is_free_and_ours() {
    let mut m = manager(&["10.0.0.0/29"], &["10.0.0.0/32"]);
    let mut exact = |owner: u32, address: &str, now: u64| {
        m.allocate_exact(&id(owner), address.parse().unwrap(), now)
    };
    let got = exact(1, "10.0.0.2", 0).unwrap();
    assert_eq!((got.existing, got.early), (false, false));
    assert!(exact(1, "10.0.0.2", 0).unwrap().existing);
    for (address, says) in [
        ("10.0.0.2", "belongs to attachment"),
        ("10.0.0.0", "reserved"),
        ("10.9.9.9", "10.0.0.0/29"),
        ("fd00::1", "none that serves"),
    ] {
        let error = exact(2, address, 0).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(address), "{error}");
    }
    // The walk over fresh addresses leaves it out, and it rests like any other.
    let taken: Vec<String> = (3..9).map(|n| take(&mut m, n, 0)).collect();
    assert!(!taken.contains(&"10.0.0.2".to_owned()), "{taken:?}");
    m.release(&id(1), 10);
    let again = m
        .allocate_exact(&id(1), "10.0.0.2".parse().unwrap(), 20)
        .unwrap();
    assert!(again.early && !again.existing);
    assert_eq!(m.early_reuses(), 1);
    m.put_block("10.0.0.0/29".parse().unwrap(), BlockService::Draining, 20);
    m.release(&id(1), 30);
    let gone = m.allocate_exact(&id(1), "10.0.0.2".parse().unwrap(), 40);
    assert!(matches!(gone, Err(AllocateError::NotOurs { .. })));
}
