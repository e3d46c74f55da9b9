//! Tests that live in a lab of their own.

use std::ffi::OsString;
use std::process::Stdio;

use crate::isolate::{self, Isolated, Stage};
use crate::lab::Lab;
use crate::options::LabOptions;

/// The body of an end-to-end test: brings up a lab and runs `body` in it.
///
/// The test program runs itself again for just this test, inside namespaces; so
/// tests run side by side without seeing each other, and as any user. What
/// `body` returns as an error, or panics with, fails the test, with the end of
/// all daemons' logs.
///
/// ```no_run
/// #[test]
/// fn pods_of_two_nodes_reach_each_other() {
///     viaduct_lab::in_lab(viaduct_lab::LabOptions::default(), |lab| {
///         let pods = lab.pods();
///         pods[0].ping(pods[1].ip, viaduct_lab::Echo::default())
///     });
/// }
/// ```
///
/// # Panics
/// When the test fails.
pub fn in_lab(options: LabOptions, body: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    let name = test_name(std::any::type_name_of_val(&body));
    match Stage::current() {
        Stage::Outer => outer(&name),
        Stage::Init => match isolate::init(arguments(&name)) {
            Ok(code) => std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS)),
            Err(error) => fail(&format!("{error:#}")),
        },
        Stage::Worker => worker(options, body),
    }
}

fn outer(name: &str) {
    let isolated = Isolated {
        args: arguments(name),
        output: Some((Stdio::piped(), Stdio::piped())),
    };
    let outcome = isolated.spawn().and_then(|(child, socket)| {
        let output = child.wait_with_output()?;
        drop(socket);
        Ok(output)
    });
    match outcome {
        // A closure in a helper bears the helper's name, of which there is no test.
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("running 0 tests") => fail(
            &format!("{name} is no test: in_lab must be called in the test itself"),
        ),
        // What a test measured is for those who ask for it (`--nocapture`).
        Ok(output) if output.status.success() => {
            print!("{}", told(&String::from_utf8_lossy(&output.stdout)));
        }
        Ok(output) => fail(&format!(
            "{}{}\n{name} failed in its lab ({})",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            output.status
        )),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// What the test itself printed, without libtest's own lines.
fn told(stdout: &str) -> String {
    stdout
        .lines()
        // The first line of the test's may stand behind its name.
        .map(|line| match line.split_once(" ... ") {
            Some((name, rest)) if name.starts_with("test ") => rest,
            _ => line,
        })
        .filter(|line| !matches!(*line, "" | "ok" | "running 1 test"))
        .filter(|line| !line.starts_with("test result: "))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn worker(options: LabOptions, body: impl FnOnce(&Lab) -> anyhow::Result<()>) {
    let lab = isolate::prepare().and_then(|control| Lab::up(options, control));
    let lab = match lab {
        Ok(lab) => lab,
        Err(error) => fail(&format!("the lab does not come up: {error:#}")),
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&lab)));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => fail(&format!("{}\n{error:#}", lab.log_tails(30))),
        Err(panic) => {
            eprintln!("{}", lab.log_tails(30));
            std::panic::resume_unwind(panic);
        }
    }
}

#[expect(clippy::panic, reason = "failing is what a test does")]
fn fail(why: &str) -> ! {
    panic!("{why}")
}

/// The arguments that make a test program run one test.
fn arguments(name: &str) -> Vec<OsString> {
    [name, "--exact", "--nocapture", "--include-ignored"]
        .map(OsString::from)
        .into()
}

/// The test's name as libtest has it, from the type name of a closure in it:
/// `crate::module::test::{{closure}}`.
fn test_name(closure: &str) -> String {
    closure
        .split("::")
        .skip(1)
        .take_while(|part| !part.starts_with('{'))
        .collect::<Vec<_>>()
        .join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_prints_is_told_from_what_libtest_does() {
        let inner = "\nrunning 1 test\ntest a::b ... 3 lost\n4 lost\nok\n\ntest result: ok. 1\n";
        assert_eq!(told(inner), "3 lost\n4 lost\n");
    }

    #[test]
    fn a_closure_knows_the_test_that_it_is_in() {
        let closure = || ();
        assert_eq!(
            test_name(std::any::type_name_of_val(&closure)),
            "test::tests::a_closure_knows_the_test_that_it_is_in"
        );
    }
}
