//! Getting into namespaces of one's own, and being gone without a trace.
//!
//! A program that wants a lab runs itself again, twice:
//!
//! 1. the **outer** process stays where it was started. It serves the
//!    [control socket](crate::control) and hands on the exit code;
//! 2. **init** is process 1 of a new PID namespace, in new network and mount
//!    namespaces (and, without root, a new user namespace). It reaps orphans and
//!    ends when the worker or the outer process does, and then the kernel kills
//!    everything that was started inside and drops mounts and namespaces;
//! 3. the **worker** is the program proper.
//!
//! So nothing is left behind, however the outer process dies: its end closes the
//! control socket, which init watches. Called by `viaductctl lab`, by tests
//! through [`in_lab`](crate::in_lab) and by benches. It must never change
//! anything outside those namespaces.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};

use crate::control::{self, Control};

/// Says which of the three a process is; absent in the outer one.
pub const STAGE: &str = "VIADUCT_LAB_STAGE";

/// Which of the three processes this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Where the user or the test harness started it.
    Outer,
    /// Process 1 of the lab.
    Init,
    /// Inside, with work to do.
    Worker,
}

impl Stage {
    /// Reads the marker that the previous stage left in the environment.
    pub fn current() -> Stage {
        match std::env::var(STAGE).as_deref() {
            Ok("init") => Stage::Init,
            Ok("worker") => Stage::Worker,
            _ => Stage::Outer,
        }
    }
}

/// How to start the isolated copy of this program.
#[derive(Debug)]
pub struct Isolated {
    /// The arguments of the copy.
    pub args: Vec<OsString>,
    /// Where its standard output and error go; inherited when absent.
    pub output: Option<(Stdio, Stdio)>,
}

impl Isolated {
    /// A copy with the same arguments and output as this process.
    pub fn same() -> Self {
        Self {
            args: std::env::args_os().skip(1).collect(),
            output: None,
        }
    }

    /// Starts it and returns the child with our end of the control socket.
    ///
    /// # Errors
    /// One line that says what is forbidden here and how to go on.
    pub fn spawn(self) -> Result<(Child, UnixStream)> {
        check_allowed()?;
        let (ours, theirs) = UnixStream::pair().context("a socket pair")?;
        let mut command = Command::new("unshare");
        command
            .args(unshare_flags())
            .arg("--")
            .arg(self_exe()?)
            .args(&self.args)
            .env(STAGE, "init")
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        if let Some((stdout, stderr)) = self.output {
            command.stdout(stdout).stderr(stderr);
        }
        let child = command
            .spawn()
            .context("unshare cannot be started (Debian: util-linux)")?;
        Ok((child, ours))
    }
}

/// Runs `work` inside a lab's namespaces, re-executing this program with the same
/// arguments until it is there. To be called first thing in `main`.
pub fn enter(work: impl FnOnce(Control) -> ExitCode) -> ExitCode {
    enter_as(Isolated::same, |_, _| Ok(()), work)
}

/// As [`enter`], with a say in how the isolated copy is started, and in what the
/// outer process does when the worker reports that it is ready: it is told the
/// process id of init and the report.
pub fn enter_as(
    how: impl FnOnce() -> Isolated,
    ready: impl Fn(u32, &str) -> Result<()> + Send + 'static,
    work: impl FnOnce(Control) -> ExitCode,
) -> ExitCode {
    let outcome = match Stage::current() {
        Stage::Outer => outer(how(), ready),
        Stage::Init => init(std::env::args_os().skip(1).collect()),
        Stage::Worker => prepare().map(work),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn outer(
    how: Isolated,
    ready: impl Fn(u32, &str) -> Result<()> + Send + 'static,
) -> Result<ExitCode> {
    let (mut child, socket) = how.spawn()?;
    let unshare = child.id();
    std::thread::spawn(move || {
        control::serve(&socket, &|report| {
            let init = child_of(unshare).context("the lab's first process is gone")?;
            ready(init, report)
        })
    });
    let status = child.wait().context("waiting for the lab")?;
    Ok(exit_code(
        status.code().or(status.signal().map(|s| 128 + s)),
    ))
}

fn exit_code(code: Option<i32>) -> ExitCode {
    ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

/// Runs the worker as process 1: reaps orphans, ends with the worker or when the
/// outer process is gone.
///
/// # Errors
/// When the worker cannot be started.
pub(crate) fn init(args: Vec<OsString>) -> Result<ExitCode> {
    let worker = Command::new(self_exe()?)
        .args(args)
        .env(STAGE, "worker")
        .spawn()
        .context("starting the lab's worker")?;
    let worker = i32::try_from(worker.id()).context("a process id")?;
    std::thread::spawn(|| {
        wait_for_hangup();
        // As process 1: the kernel kills whatever is left.
        std::process::exit(1);
    });
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == worker => {
                return Ok(exit_code(Some(code)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == worker => {
                return Ok(exit_code(Some(128 + signal as i32)));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the lab's worker"),
        }
    }
}

/// Returns when the other end of standard input, the control socket, is closed.
fn wait_for_hangup() {
    let stdin = std::io::stdin();
    loop {
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// Makes the worker's surroundings its own: a fresh `/run` and a loopback that is up.
///
/// # Errors
/// Which of the steps failed.
pub(crate) fn prepare() -> Result<Control> {
    let control = Control::from_stdin()?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )
    .context("mounting the lab's own /run")?;
    std::fs::create_dir_all(crate::netns::DIR)?;
    crate::command::run("ip", ["link", "set", "lo", "up"])?;
    Ok(control)
}

fn unshare_flags() -> Vec<&'static str> {
    let mut flags = Vec::new();
    if !geteuid().is_root() {
        flags.extend(["--user", "--map-root-user"]);
    }
    flags.extend([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
    ]);
    flags
}

/// Tries the namespaces with an empty program, for an error that one can act on.
fn check_allowed() -> Result<()> {
    let tried = Command::new("unshare")
        .args(unshare_flags())
        .args(["--", "true"])
        .stdin(Stdio::null())
        .output()
        .context("unshare cannot be started (Debian: util-linux)")?;
    if tried.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&tried.stderr);
    let why = why.trim().lines().next().unwrap_or("no reason given");
    if geteuid().is_root() {
        bail!(
            "the lab needs namespaces of its own, which are forbidden here even to root ({why}): \
             it needs CAP_SYS_ADMIN, as in a container that is run with --privileged"
        );
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    bail!(
        "an ordinary user may not create user namespaces here ({why}); as root the lab needs \
         none: sudo {} {}",
        self_exe()?.display(),
        arguments.join(" ")
    )
}

fn self_exe() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("the path of this program")
}

/// The one child of a process, as this PID namespace sees it.
fn child_of(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    children
        .split_whitespace()
        .next()
        .and_then(|c| c.parse().ok())
        .with_context(|| format!("process {pid} has no child"))
}

/// Points standard output and error at nothing: whoever read them may go.
///
/// # Errors
/// When `/dev/null` cannot be opened.
pub fn let_go_of_output() -> Result<()> {
    let null = std::fs::OpenOptions::new()
        .write(true)
        .open(Path::new("/dev/null"))
        .context("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Whether the uids that the lab gives its daemons exist in this user namespace;
/// `uid_map` is the text of `/proc/self/uid_map`.
pub(crate) fn maps_many_uids(uid_map: &str) -> bool {
    uid_map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        matches!(
            (fields.next(), fields.next(), fields.next()),
            (Some(Ok(0)), Some(Ok(_)), Some(Ok(count))) if count >= 65536
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_one_uid_is_told_from_a_full_one() {
        assert!(maps_many_uids("         0          0 4294967295\n"));
        assert!(maps_many_uids("0 100000 65536\n"));
        assert!(!maps_many_uids("         0       1000          1\n"));
        assert!(!maps_many_uids(""));
    }

    #[test]
    fn without_the_marker_a_process_is_the_outer_one() {
        assert_eq!(Stage::current(), Stage::Outer);
    }

    /// What [`whatever_happens_to_the_outer_process_nothing_is_left`] runs in a lab:
    /// leaves a process behind that ignores being asked to end, and stays.
    #[test]
    #[ignore = "runs as the helper of another test only"]
    #[expect(clippy::zombie_processes, reason = "to be left behind is its purpose")]
    fn helper_that_stays() {
        match Stage::current() {
            Stage::Outer => {}
            Stage::Init => {
                init(helper_arguments()).unwrap();
            }
            Stage::Worker => {
                let control = prepare().unwrap();
                crate::netns::add("left").unwrap();
                std::fs::write("/run/left", "").unwrap();
                crate::command::command("sh")
                    .args(["-c", "trap '' TERM HUP INT; setsid sleep 1000 & sleep 1000"])
                    .spawn()
                    .unwrap();
                control.ready("up").unwrap();
                loop {
                    std::thread::park();
                }
            }
        }
    }

    fn helper_arguments() -> Vec<OsString> {
        [
            "isolate::tests::helper_that_stays",
            "--exact",
            "--ignored",
            "--nocapture",
        ]
        .map(OsString::from)
        .into()
    }

    fn descendants(pid: u32) -> Vec<u32> {
        let mut all = vec![pid];
        let mut next = 0;
        while let Some(parent) = all.get(next).copied() {
            next += 1;
            let tasks = std::fs::read_dir(format!("/proc/{parent}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(task.path().join("children"));
                let children = children.unwrap_or_default();
                all.extend(
                    children
                        .split_whitespace()
                        .filter_map(|c| c.parse::<u32>().ok()),
                );
            }
        }
        all
    }

    #[test]
    fn whatever_happens_to_the_outer_process_nothing_is_left() {
        let isolated = Isolated {
            args: helper_arguments(),
            output: Some((Stdio::null(), Stdio::null())),
        };
        let (mut child, socket) = isolated.spawn().unwrap();
        let (up, is_up) = std::sync::mpsc::channel();
        let served = socket.try_clone().unwrap();
        std::thread::spawn(move || {
            control::serve(&served, &|_| Ok(up.send(())?));
        });
        is_up
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("the helper does not come up");
        // unshare, init, the worker, sh and two sleeps.
        let patience = std::time::Duration::from_secs(10);
        let all = crate::wait::eventually(patience, || {
            let all = descendants(child.id());
            anyhow::ensure!(all.len() >= 6, "only {all:?}");
            Ok(all)
        })
        .unwrap();
        assert!(!Path::new("/run/left").exists());
        assert!(!crate::netns::path("left").exists());
        // What the kernel does when a process is killed: its sockets are closed.
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        child.wait().unwrap();
        crate::wait::eventually(patience, || {
            let left: Vec<_> = all
                .iter()
                .filter(|pid| Path::new(&format!("/proc/{pid}/root")).read_link().is_ok())
                .collect();
            anyhow::ensure!(left.is_empty(), "still there: {left:?}");
            Ok(())
        })
        .unwrap();
    }
}
