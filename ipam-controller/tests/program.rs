//! The program itself: what it refuses and how it ends.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_viaduct-controller"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn wrong_usage_is_one_line_and_ends_with_2() {
    for (args, parts) in [
        (&[][..], &["--datastore", "sqlite:/"][..]),
        (
            &["--datastore", "redis://x"],
            &["--datastore", "redis", "etcd://"],
        ),
        (
            &["--datastore", "sqlite:/x/y", "--quarantine", "soon"],
            &["--quarantine", "soon", "5m"],
        ),
        (
            &["--datastore", "sqlite:/x/y", "--pool", "fd00::/48"],
            &["--pool", "fd00::/48", "IPv4"],
        ),
        (&["--colour"], &["--colour"]),
    ] {
        let output = run(args);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        for part in parts {
            assert!(told.contains(part), "{told}");
        }
    }
}

#[test]
fn a_port_that_is_taken_ends_with_1_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = format!("sqlite:{}", dir.path().join("s.db").display());
    let output = run(&["--datastore", &url, "--http", &address]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("--http") && told.contains(&address), "{told}");
}

#[test]
fn help_names_every_flag() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in [
        "datastore",
        "etcd-prefix",
        "etcd-ca",
        "etcd-cert",
        "etcd-key",
        "etcd-username",
        "etcd-password-file",
        "pool",
        "block-size",
        "reclaim-after",
        "quarantine",
        "leader-elect",
        "http",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
    }
}
