//! The cluster as its administrator has it: kubectl, a shell in each node, and the
//! control plane's power switches. The only place that starts programs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    run: PathBuf,
    repository: PathBuf,
    /// Where Viaduct's own programs are.
    binaries: PathBuf,
    /// The process whose namespaces the whole cluster lives in.
    room: String,
    /// Where Kubernetes was built to.
    home: String,
}

/// What is deployed: a directory of manifests/.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deployed {
    /// viaduct: the records are in the Kubernetes API.
    Kube,
    /// viaduct-etcd: they are in the control plane's etcd.
    Etcd,
    /// viaduct-adopt: in the Kubernetes API, with the pod CIDRs of the Nodes for blocks.
    Adopt,
}

impl Deployed {
    /// What VIADUCT_KUBE_DEPLOY says.
    pub(crate) fn chosen() -> Self {
        match std::env::var("VIADUCT_KUBE_DEPLOY").as_deref() {
            Ok("viaduct-etcd") => Self::Etcd,
            Ok("viaduct-adopt") => Self::Adopt,
            _ => Self::Kube,
        }
    }

    /// Its kustomization.
    pub(crate) fn kustomization(self) -> &'static str {
        match self {
            Self::Kube => "tests/kube/manifests/viaduct",
            Self::Etcd => "tests/kube/manifests/viaduct-etcd",
            Self::Adopt => "tests/kube/manifests/viaduct-adopt",
        }
    }
}

/// The nodes' names.
pub(crate) const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Where the API server is.
const API_SERVER: &str = "https://172.30.0.10:6443";

/// The address of a node on the underlay.
pub(crate) fn address(node: &str) -> String {
    let place = NODES.iter().position(|n| *n == node).unwrap_or_default();
    format!("172.30.0.{}", 11 + place)
}

impl Cluster {
    /// Finds the cluster that runs in `run`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn open(run: &Path, repository: &Path, binaries: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = run.join(name);
            fs::read_to_string(&path)
                .map(|text| text.trim().to_owned())
                .with_context(|| {
                    format!(
                        "no cluster is up ({} cannot be read): tests/kube/cluster.sh up",
                        path.display()
                    )
                })
        };
        Ok(Self {
            room: read("pid")?,
            home: read("home")?,
            run: run.to_owned(),
            // The room has another working directory.
            repository: std::path::absolute(repository)?,
            binaries: std::path::absolute(binaries)?,
        })
    }

    /// A program in the room, from where every node and the control plane are reached.
    fn in_room(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.room, "--mount", "--net", "--pid", "--ipc"])
            .args(["--uts", "--wd=/", program])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let conf = self.run.join("pki/admin.conf");
        let conf = format!("--kubeconfig={}", conf.display());
        let mut all = vec![conf.as_str()];
        all.extend(arguments);
        self.in_room(&self.program("kubectl"), &all)
    }

    /// The path of a program that belongs to the cluster.
    pub(crate) fn program(&self, name: &str) -> String {
        format!("{}/bin/{name}", self.home)
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command(arguments).output();
        judge(output, || format!("kubectl {}", arguments.join(" ")))
    }

    /// What the API server answers to a server-side apply by whoever has that token.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn patch_as(&self, token: &str, path: &str, what: &str) -> Result<String> {
        let authority = self.run.join("pki/ca.crt").display().to_string();
        let bearer = format!("Authorization: Bearer {token}");
        let arguments = [
            "-sS",
            "-X",
            "PATCH",
            "--cacert",
            &authority,
            "-H",
            &bearer,
            "-H",
            "Content-Type: application/apply-patch+yaml",
            "--data-binary",
            what,
            &format!("{API_SERVER}{path}"),
        ];
        let output = self.in_room("curl", &arguments).output();
        // Not the token.
        judge(output, || format!("curl {path}"))
    }

    /// What the API server wrote down of Viaduct's calls.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn audit_log(&self) -> Result<String> {
        let path = self.run.join("control/audit.log");
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// What kubectl prints with something on its standard input.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .kubectl_command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        judge(child.wait_with_output(), || {
            format!("kubectl {}", arguments.join(" "))
        })
    }

    /// kubectl as a process of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn kubectl_background(&self, arguments: &[&str]) -> Result<Background> {
        let conf = self.run.join("pki/admin.conf");
        let conf = format!("--kubeconfig={}", conf.display());
        let program = self.program("kubectl");
        let all = [&[program.as_str(), conf.as_str()], arguments].concat();
        self.background(Place::Outside, &all)
    }

    /// A program on the network of a pod, or beside the nodes.
    ///
    /// # Errors
    /// When it cannot be started, or there is no such pod.
    pub(crate) fn background(&self, place: Place<'_>, arguments: &[&str]) -> Result<Background> {
        // Each nsenter becomes the next program, so that ending the first ends the last: a
        // PID namespace, which needs a process in between, is not entered.
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.room, "--mount", "--net"]);
        match place {
            Place::Outside => {}
            Place::Pod { node, name } => {
                let pid = self.pid_of(node)?;
                let inner = self.on(node, &["sh", "-c", &find_pod(name)])?;
                command.args(["nsenter", &format!("--mount=/proc/{pid}/ns/mnt")]);
                command.args(["nsenter", &format!("--net=/proc/{}/ns/net", inner.trim())]);
            }
        }
        command.args(arguments);
        Background::start(command)
    }

    fn pid_of(&self, node: &str) -> Result<String> {
        let pid = fs::read_to_string(self.run.join(node).join("pid"))?;
        Ok(pid.trim().to_owned())
    }

    /// A shell's words that begin a kubectl command line, in the room.
    pub(crate) fn kubectl_words(&self) -> String {
        format!("{} --kubeconfig={}", self.program("kubectl"), self.admin())
    }

    /// Who the administrator is, for other programs than kubectl.
    pub(crate) fn admin(&self) -> String {
        self.run.join("pki/admin.conf").display().to_string()
    }

    /// The path of a program of Viaduct's.
    pub(crate) fn own_program(&self, name: &str) -> String {
        self.binaries.join(name).display().to_string()
    }

    /// The path of something in this repository.
    pub(crate) fn repository(&self, path: &str) -> String {
        self.repository.join(path).display().to_string()
    }

    /// Keeps something for a later check, until the cluster ends.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep(&self, name: &str, what: &str) -> Result<()> {
        let path = self.run.join(format!("kept-{name}"));
        fs::write(&path, what).with_context(|| path.display().to_string())
    }

    /// What an earlier check has kept.
    ///
    /// # Errors
    /// When none has.
    pub(crate) fn kept(&self, name: &str) -> Result<String> {
        let path = self.run.join(format!("kept-{name}"));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Objects as the API has them.
    ///
    /// # Errors
    /// As kubectl's.
    pub(crate) fn get(&self, what: &[&str]) -> Result<Value> {
        let mut arguments = vec!["get", "-o", "json"];
        arguments.extend(what);
        Ok(serde_json::from_str(&self.kubectl(&arguments)?)?)
    }

    /// Applies a file of this repository.
    ///
    /// # Errors
    /// As kubectl's.
    pub(crate) fn apply(&self, file: &str) -> Result<()> {
        let text = fs::read_to_string(self.repository.join(file)).context(file.to_owned())?;
        self.kubectl_with(&["apply", "-f", "-"], &text).map(drop)
    }

    /// Applies a kustomization of this repository.
    ///
    /// # Errors
    /// As kubectl's.
    pub(crate) fn apply_kustomization(&self, directory: &str) -> Result<()> {
        // Outside of the room: the files are here.
        let output = Command::new(self.program("kubectl"))
            .args(["kustomize", directory])
            .current_dir(&self.repository)
            .output();
        let text = judge(output, || format!("kubectl kustomize {directory}"))?;
        self.kubectl_with(&["apply", "-f", "-"], &text).map(drop)
    }

    /// What a program prints that runs in a node, in all its namespaces, as root.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn on(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let pid = self.pid_of(node)?;
        let mut all = vec!["-t", pid.as_str(), "--mount", "--uts", "--ipc", "--net"];
        all.extend(["--pid", "--cgroup", "--wd=/"]);
        all.extend(arguments);
        let output = self.in_room("nsenter", &all).output();
        judge(output, || format!("{node}: {}", arguments.join(" ")))
    }

    /// What a program prints that runs beside the nodes, on their network.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn outside(&self, arguments: &[&str]) -> Result<String> {
        let output = self.in_room(arguments[0], &arguments[1..]).output();
        judge(output, || arguments.join(" "))
    }

    /// What a program prints that runs beside the nodes, and whether it said that all is well.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn asked(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.in_room(arguments[0], &arguments[1..]).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok((output.status.success(), said))
    }

    /// What a program of this repository prints, run in it and outside of the cluster.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn here(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.repository.join(arguments[0]))
            .args(&arguments[1..])
            .current_dir(&self.repository)
            .stdin(Stdio::null())
            .output();
        judge(output, || arguments.join(" "))
    }

    /// The probe, as a program outside of any pod.
    pub(crate) fn probe(&self) -> String {
        self.run.join("probe").display().to_string()
    }

    /// `control-plane.sh start|stop|kill PROGRAM...`
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn control(&self, verb: &str, programs: &[&str]) -> Result<()> {
        self.script(&[&["control", verb], programs].concat())
    }

    /// `power.sh on|off NODE`
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn power(&self, verb: &str, node: &str) -> Result<()> {
        self.script(&["power", verb, node])
    }

    fn script(&self, arguments: &[&str]) -> Result<()> {
        // What it starts outlives it: nobody may wait for the end of its output.
        let status = Command::new(self.repository.join("tests/kube/cluster.sh"))
            .args(arguments)
            .env("VIADUCT_KUBE_RUN", &self.run)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("cluster.sh {}: {status}", arguments.join(" "));
        }
        Ok(())
    }
}

/// Where a program is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// On the nodes' network, but on none of them.
    Outside,
    /// In a pod's network, whether or not anybody can reach the API server.
    Pod {
        /// The pod's node.
        node: &'a str,
        /// The pod's name.
        name: &'a str,
    },
}

/// Prints the process of a pod: its environment has the pod's name.
fn find_pod(name: &str) -> String {
    format!(
        "p=$(grep -slzx HOSTNAME={name} /proc/[0-9]*/environ | head -n 1); \
         if [ -n \"$p\" ]; then p=${{p#/proc/}}; echo ${{p%/environ}}; exit; fi; \
         echo 'no process of the pod {name}' >&2; exit 1"
    )
}

/// A program that runs beside the check, and ends with it.
#[derive(Debug)]
pub(crate) struct Background(Option<Child>);

impl Background {
    fn start(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(Self(Some(command.spawn()?)))
    }

    /// What it prints, as it comes.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.as_mut().and_then(|child| child.stdout.take())
    }

    /// Tells it to end by SIGTERM, and does not wait.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(crate) fn stop(&self) -> Result<()> {
        if let Some(child) = &self.0 {
            Command::new("kill").arg(child.id().to_string()).status()?;
        }
        Ok(())
    }

    /// Tells it to end by SIGTERM; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub(crate) fn end(mut self, what: &str) -> Result<String> {
        self.stop()?;
        let child = self.0.take().context("it has ended already")?;
        judge(child.wait_with_output(), || what.to_owned())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn judge(output: std::io::Result<Output>, what: impl Fn() -> String) -> Result<String> {
    let output = output.with_context(&what)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    bail!(
        "{}: {} ({})",
        what(),
        last.unwrap_or("it does not say why"),
        output.status
    )
}
