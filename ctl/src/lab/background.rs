//! A lab that stays up after the command that started it has ended.
//!
//! The command starts itself once more as the **supervisor**, which leaves the
//! terminal and is the outer process of the lab. What happens inside is shown
//! until the worker has nothing more to say, which is what the command waits for.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use viaduct_lab::isolate::Isolated;
use viaduct_lab::{Control, Lab, Stage, enter_as, isolate};

use super::state::{Process, Ready, State};

/// Marks the supervisor; holds the process id of the command that waits for it.
const SUPERVISOR: &str = "VIADUCT_LAB_SUPERVISOR";

/// Brings up, in the background, a lab whose worker does `work` and then
/// [`stay`]s.
pub(crate) fn start(work: impl FnOnce(Control) -> ExitCode) -> ExitCode {
    if Stage::current() != Stage::Outer || std::env::var_os(SUPERVISOR).is_some() {
        return supervise(work);
    }
    foreground().unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn supervise(work: impl FnOnce(Control) -> ExitCode) -> ExitCode {
    let how = || {
        // Only fails when we lead a group already, and then there is no need.
        let _ = nix::unistd::setsid();
        Isolated::same()
    };
    let ready = |init: u32, report: &str| {
        let waiting = std::env::var(SUPERVISOR).unwrap_or_default();
        ensure!(
            nix::unistd::getppid().to_string() == waiting,
            "the command that started the lab has gone"
        );
        State {
            supervisor: Process::of(std::process::id())?,
            init: Process::of(init)?,
            rootless: !nix::unistd::geteuid().is_root(),
            ready: serde_json::from_str(report).context("the worker's report")?,
        }
        .save()
    };
    enter_as(how, ready, work)
}

fn foreground() -> Result<ExitCode> {
    State::none_may_be_up()?;
    let mut supervisor = Command::new(std::env::current_exe().context("the path of this program")?)
        .args(std::env::args_os().skip(1))
        .env(SUPERVISOR, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the lab's supervisor")?;
    show(&mut supervisor);
    match State::current()? {
        Some(state) if state.supervisor.pid == supervisor.id() => {
            print!("{}", how_to_go_on(&state));
            Ok(if state.ready.proved {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        _ => {
            let status = supervisor.wait().context("waiting for the supervisor")?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(code
                .filter(|c| *c != 0)
                .map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// Ends what the worker says while it is waited for. Its output has no end of its
/// own while the lab is up, since processes between it and us hold it open.
const END: u8 = 0x04;

/// Copies what the lab says until it has no more to say.
fn show(supervisor: &mut Child) {
    let (stdout, stderr) = (supervisor.stdout.take(), supervisor.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(|| stderr.map(|from| copy(from, std::io::stderr())));
        if let Some(from) = stdout {
            copy(from, std::io::stdout());
        }
    });
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let end = buffer[..length].iter().position(|byte| *byte == END);
        let shown = to.write_all(&buffer[..end.unwrap_or(length)]);
        if end.is_some() || shown.is_err() {
            return;
        }
    }
}

fn say_no_more() -> Result<()> {
    std::io::stdout().write_all(&[END])?;
    std::io::stdout().flush()?;
    std::io::stderr().write_all(&[END])?;
    isolate::let_go_of_output()
}

fn how_to_go_on(state: &State) -> String {
    let node = state.ready.nodes.first().map_or("n1", |(name, _)| name);
    let pod = state
        .ready
        .nodes
        .first()
        .and_then(|(_, pods)| pods.first())
        .map_or("p1", String::as_str);
    format!(
        "The lab stays up. Look around in it and end it:\n  \
         viaductctl lab exec {node} -- viaductctl status\n  \
         viaductctl lab exec {node} -- ip route\n  \
         viaductctl lab exec {node}/{pod} -- ip addr\n  \
         viaductctl lab down\n"
    )
}

/// Reports a lab as ready and keeps it, in the worker, until it is taken down.
pub(crate) fn stay(lab: &Lab, proved: bool) -> ExitCode {
    let ready = Ready {
        environment: lab.environment(),
        nodes: lab
            .nodes()
            .iter()
            .map(|node| {
                let short = |pod: &viaduct_lab::Pod| {
                    pod.name.rsplit('/').next().unwrap_or_default().to_owned()
                };
                (
                    node.name().to_owned(),
                    node.pods().iter().map(short).collect(),
                )
            })
            .collect(),
        proved,
    };
    let reported = serde_json::to_string(&ready)
        .context("the report")
        .and_then(|report| lab.control().ready(&report))
        .and_then(|()| say_no_more());
    if let Err(error) = reported {
        eprintln!("the lab cannot stay up: {error:#}");
        return ExitCode::FAILURE;
    }
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shown_up_to_its_end() {
        let shown = |text: &[u8]| {
            let mut to = Vec::new();
            copy(text, &mut to);
            to
        };
        assert_eq!(shown(b"all\n"), b"all\n");
        assert_eq!(shown(b"all\n\x04more"), b"all\n");
        assert_eq!(shown(b"\x04"), b"");
    }
}
