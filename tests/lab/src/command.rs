//! Running programs inside the lab: nothing inherited that should not be, and
//! errors that show what the program said.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// A command without standard input, and without any `VIADUCT_...` variable: they
/// are flags of the daemons, and markers of the lab.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"VIADUCT_") {
            command.env_remove(name);
        }
    }
    command
}

/// The whole command line, for messages.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; with what it wrote to standard error.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
    output_of(command(program).args(args))
}

/// As [`run`], for a command that is built already.
///
/// # Errors
/// As [`run`].
pub fn output_of(command: &mut Command) -> Result<String> {
    let what = shown(command);
    let output = command
        .output()
        .with_context(|| format!("{what} cannot be started"))?;
    checked(&what, output)
}

/// Runs a program with `input` on its standard input, and hands back all of what
/// came of it.
///
/// # Errors
/// When it cannot be started.
pub fn with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let what = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what} cannot be started"))?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        if let Some(mut stdin) = stdin {
            // A program may end without reading all of it; that is its right.
            scope.spawn(move || stdin.write_all(input));
        }
        child
            .wait_with_output()
            .with_context(|| format!("waiting for {what}"))
    })
}

/// Runs `ip -batch` with the given lines.
///
/// # Errors
/// As [`run`].
pub fn ip_batch(lines: &str) -> Result<()> {
    let output = with_input(command("ip").args(["-batch", "-"]), lines.as_bytes())?;
    checked("ip -batch", output).map(drop)
}

fn checked(what: &str, output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("{what}: {}: {}", output.status, stderr.trim())
}
