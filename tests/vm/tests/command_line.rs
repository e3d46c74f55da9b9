//! The command line of `viaduct-vm`. That this test exists also has cargo build the program
//! together with the other tests, so that `make test-vm` compiles nothing twice.

use std::process::{Command, Output};

fn viaduct_vm(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_viaduct-vm");
    Command::new(program)
        .args(arguments)
        .output()
        .expect("it runs")
}

#[test]
fn a_backend_that_is_none_is_refused_with_those_that_are() {
    let arguments = ["cluster", "--kernel", "x", "--initramfs", "x", "--backend"];
    let refused = viaduct_vm(&[&arguments[..], &["gre"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("allowed: vxlan, ipip, host-gw"), "{said}");
}

#[test]
fn a_script_needs_a_program_to_run() {
    let refused = viaduct_vm(&["script", "--kernel", "x", "--initramfs", "x"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(said.contains("<COMMAND>"), "{said}");
}
