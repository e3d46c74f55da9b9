//! One virtual machine: its two processes, its console, its monitor, its power.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use viaduct_lab::command::command;
use viaduct_lab::eventually;

use crate::ImageArgs;
use crate::image::{self, CABLE, Hardware, Sockets};
use crate::port::Port;

/// What `init` prints before the script's result.
const ENDED: &str = "viaduct-vm: the script ended with ";

/// Where machines keep their sockets and scripts: in the lab's own `/run`.
const DIR: &str = "/run/vm";

/// A machine that is on.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    qemu: Child,
    virtiofsd: Child,
    sockets: Sockets,
    console: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Machine {
    /// Switches a machine on; it runs `script` and is off when that ends. With `echo`
    /// its console is ours too.
    pub(crate) fn on(
        image: &ImageArgs,
        hardware: &Hardware,
        script: &str,
        echo: bool,
    ) -> Result<Self> {
        let dir = PathBuf::from(DIR).join(&hardware.name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("script"), script)?;
        std::fs::write(dir.join("host"), &hardware.name)?;
        let sockets = Sockets::of(&dir);
        let virtiofsd = show_files(&sockets, &dir)?;
        let qemu = command("qemu-system-x86_64")
            .args(image::qemu_args(image, hardware, &sockets, &dir))
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-system-x86_64 (Debian: qemu-system-x86) cannot be started")?;
        let mut machine = Self {
            name: hardware.name.clone(),
            qemu,
            virtiofsd,
            sockets,
            console: Arc::default(),
            reader: None,
        };
        if let Some(stdout) = machine.qemu.stdout.take() {
            let console = Arc::clone(&machine.console);
            let read = move || read_console(stdout, &console, echo);
            machine.reader = Some(std::thread::spawn(read));
        }
        Ok(machine)
    }

    /// The serial port, once the guest in the machine has said that it is there.
    pub(crate) fn port(&mut self) -> Result<Port> {
        let mut port = Port::connect(&self.sockets.port)?;
        port.greeted()
            .with_context(|| self.told("does not come up"))?;
        Ok(port)
    }

    /// Pulls the network cable, or puts it back.
    pub(crate) fn cable(&self, plugged: bool) -> Result<()> {
        let state = if plugged { "on" } else { "off" };
        self.monitor(&format!("set_link {CABLE} {state}")).map(drop)
    }

    /// Stops its processor and its clocks, or lets them go on.
    pub(crate) fn pause(&self, paused: bool) -> Result<()> {
        self.monitor(if paused { "stop" } else { "cont" }).map(drop)
    }

    /// Says a line to QEMU's monitor; what it answers.
    fn monitor(&self, line: &str) -> Result<String> {
        let mut monitor = UnixStream::connect(&self.sockets.monitor).context("QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
        let prompt = |monitor: &mut UnixStream| -> Result<String> {
            let mut said = Vec::new();
            let mut byte = [0];
            while !said.ends_with(b"(qemu) ") {
                monitor.read_exact(&mut byte).context("QEMU's monitor")?;
                said.push(byte[0]);
            }
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        prompt(&mut monitor)?;
        writeln!(monitor, "{line}")?;
        let said = prompt(&mut monitor)?;
        ensure!(!said.contains("Error"), "QEMU's monitor: {line}: {said}");
        Ok(said)
    }

    /// Cuts the power: nothing inside has a chance to say good-bye.
    pub(crate) fn cut(mut self) -> Result<()> {
        self.qemu.kill().context("ending QEMU")?;
        self.qemu.wait()?;
        let _ = self.virtiofsd.kill();
        self.virtiofsd.wait()?;
        Ok(())
    }

    /// Waits until it is off and says what the script ended with. QEMU's own exit
    /// code says nothing of it; a result that was not printed is none.
    pub(crate) fn result(mut self, patience: Duration) -> Result<u8> {
        let start = Instant::now();
        while self.qemu.try_wait()?.is_none() {
            if start.elapsed() > patience {
                bail!(
                    "{}\n{}",
                    self.told(&format!("is still on after {patience:?}")),
                    self.where_it_stands()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Ends by itself when QEMU has gone; else with our namespaces.
        let _ = self.virtiofsd.kill();
        let _ = self.virtiofsd.wait();
        // Until the last of what it printed is read.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        result_in(&self.console()).with_context(|| self.told("went off without a result"))
    }

    /// Each processor's instruction, and whether it waits (HLT=1): a machine that
    /// waits everywhere has a program that hangs.
    fn where_it_stands(&self) -> String {
        let registers = self.monitor("info registers -a");
        registers.map_or_else(
            |error| format!("{error:#}"),
            |text| {
                let lines = text.lines().filter(|line| line.starts_with("RIP="));
                lines.collect::<Vec<_>>().join("\n")
            },
        )
    }

    fn console(&self) -> String {
        let console = self.console.lock();
        console.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A sentence about the machine with the end of its console.
    pub(crate) fn told(&self, what: &str) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("machine {} {what}; its console ends:\n{tail}", self.name)
    }
}

/// Starts virtiofsd and waits until it listens.
fn show_files(sockets: &Sockets, dir: &Path) -> Result<Child> {
    let path = dir.join("virtiofsd.log");
    let log = std::fs::File::create(&path)?;
    let mut virtiofsd = command(image::virtiofsd())
        .args(image::virtiofsd_args(sockets))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("virtiofsd (Debian: qemu-system-common) cannot be started")?;
    eventually(Duration::from_secs(20), || {
        let ended = virtiofsd.try_wait()?.is_some();
        ensure!(
            !ended && sockets.files.exists(),
            "virtiofsd does not listen: {}",
            std::fs::read_to_string(&path).unwrap_or_default().trim()
        );
        Ok(())
    })?;
    Ok(virtiofsd)
}

fn read_console(stdout: ChildStdout, console: &Mutex<String>, mut echo: bool) {
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        // What comes after the result is the kernel's good-bye.
        echo &= !line.starts_with(ENDED);
        if echo {
            println!("{line}");
        }
        let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
        console.push_str(line);
        console.push('\n');
    }
}

/// The result that a console shows, if it shows one.
fn result_in(console: &str) -> Option<u8> {
    let line = console.lines().rev().find_map(|l| l.strip_prefix(ENDED))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_printed_result_is_one() {
        let printed = format!("hello\n{ENDED}3\n[ 9.1] reboot: Power down\n");
        assert_eq!(result_in(&printed), Some(3));
        for none in [
            "",
            "hello\n",
            "viaduct-vm: the script ended with nothing: no overlay",
        ] {
            assert_eq!(result_in(none), None, "{none}");
        }
    }
}
