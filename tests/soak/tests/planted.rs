//! A soak finds what is wrong: it is run for some seconds with a fault that was planted.

use std::process::Command;

#[test]
fn a_route_that_was_away_for_a_second_is_found_and_the_logs_are_kept() {
    let logs = tempfile::tempdir().unwrap();
    let soak = Command::new(env!("CARGO_BIN_EXE_viaduct-soak"))
        .args([
            "--minutes",
            "0.1",
            "--seed",
            "3",
            "--plant",
            "loss",
            "--logs",
        ])
        .arg(logs.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&soak.stdout).into_owned();
    let all = format!("{said}{}", String::from_utf8_lossy(&soak.stderr));
    assert_eq!(soak.status.code(), Some(1), "{all}");
    // Of everything that the pod on n1 sent, and nothing of anybody else's.
    let wrong: Vec<&str> = said.lines().filter(|l| l.starts_with("WRONG: ")).collect();
    assert_eq!(wrong.len(), 3, "{all}");
    for line in wrong {
        assert!(line.contains(" datagrams from n1 to n"), "{all}");
        assert!(line.ends_with("while nothing happened"), "{all}");
    }
    assert!(said.contains("ipam check: clean: "), "{all}");
    assert!(said.contains("soak: FAIL: 3 things were wrong"), "{all}");
    let log = std::fs::read_to_string(logs.path().join("logs/agent-n1.log")).unwrap();
    assert!(!log.is_empty());
}

#[test]
fn a_time_that_is_none_is_refused_with_what_is_allowed() {
    let soak = Command::new(env!("CARGO_BIN_EXE_viaduct-soak"))
        .args(["--minutes", "long"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&soak.stderr).into_owned();
    assert_eq!(soak.status.code(), Some(2), "{said}");
    assert!(said.contains("a number of minutes above 0"), "{said}");
}
