//! `viaductctl ipam`: who has which address, whether everybody agrees on it, and giving back
//! what nobody has any more.
//!
//! ```text
//! check ── store ─────────────────┐
//!       └─ gather ── reach, report┴─> compare ─> render
//! show, release ── client ── the agent's socket
//! forget ── store
//! ```

mod check;
mod client;
pub(crate) mod compare;
mod forget;
mod gather;
mod release;
mod report;
mod show;
mod store_rules;

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use viaduct_datastore::Records;
use viaduct_model::NodeName;

use crate::output::Format;
use crate::places::RunDir;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Compare store, ledgers, kernels and pods, and name what contradicts
    ///
    /// Duplicates (an address with two owners), leaks (taken for nobody), orphans (objects
    /// that belong to nobody) and strangers (addresses and routes that do not belong where
    /// they are), each with the command that puts it right. What does not last for two
    /// looks, such as an ADD under way, is no finding. Ledger and kernel of another node
    /// are read by running `viaductctl ipam report` there (--reach). A node that cannot
    /// be looked at is a finding too. Changes nothing.
    ///
    /// Exit codes: 0 all agree, 1 something was found or the datastore does not answer.
    Check(CheckArgs),
    /// Print what this host's ledger and kernel hold of pods, for `check`
    ///
    /// Needs no datastore and no agent, but root or the agent's uid.
    Report {
        /// Print what this host's agent knows of one address, for `show`, instead
        #[arg(long, value_name = "ADDRESS")]
        address: Option<IpAddr>,
        #[command(flatten)]
        here: HereArgs,
    },
    /// Say who has an address, since when, on which node, or until when it rests
    Show {
        /// The address
        address: IpAddr,
        #[command(flatten)]
        reach: ReachArgs,
    },
    /// Give an address back that nobody uses any more (on its node, as root)
    ///
    /// Asks for proof: container and interface must be those that the ledger names, the
    /// kernel must have neither device nor route for the address, and the container's
    /// network namespace must be gone. The agent must run; one that starts does this by
    /// itself.
    Release(ReleaseArgs),
    /// Delete a record of the store that contradicts the others
    ///
    /// What a running agent or controller stands for it writes again. Of a block, the node
    /// that holds it stops handing out addresses.
    Forget {
        /// Of which kind: pool, block, node or claim
        #[arg(value_parser = ["pool", "block", "node", "claim"])]
        kind: String,
        /// Its name in the store
        name: String,
        /// Confirm that it is to be deleted
        #[arg(long)]
        yes: bool,
    },
}

/// What is said of the run directory here.
const RUN_DIR: &str = "The run directory of this host's agent";

#[derive(Debug, Clone, Args)]
#[command(mut_arg("run_dir", |arg| arg.help(RUN_DIR)))]
pub(crate) struct HereArgs {
    #[command(flatten)]
    at: RunDir,
}

impl HereArgs {
    /// The run directory.
    fn run_dir(&self) -> &Path {
        &self.at.run_dir
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReachArgs {
    /// How to run a command on a node: a shell's command line that begins it, {node} stands
    /// for the node's name
    ///
    /// For example 'ssh root@{node}', or in Kubernetes 'kubectl -n viaduct-system exec -c agent
    /// $(kubectl -n viaduct-system get pod -l app.kubernetes.io/component=agent
    /// --field-selector spec.nodeName={node} -o name) --'; a repair by `ip` is then for the node
    /// itself, as the agent's container has none. Without it, only this host is looked at.
    #[arg(long, env = "VIADUCT_REACH", value_name = "COMMAND", value_parser = parse_reach)]
    pub(crate) reach: Option<String>,
    /// This host's name among the nodes (default: the host name)
    #[arg(long, env = "VIADUCT_NODE_NAME", value_name = "NODE")]
    pub(crate) node_name: Option<NodeName>,
    #[command(flatten)]
    pub(crate) here: HereArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Look at the ledgers and kernels of these nodes only; at all records of the store
    /// in any case
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) nodes: Vec<NodeName>,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The address
    pub(crate) address: IpAddr,
    /// The container that the ledger names
    #[arg(long, value_name = "ID")]
    pub(crate) container: String,
    /// The interface inside it
    #[arg(long, default_value = "eth0", value_name = "NAME")]
    pub(crate) ifname: String,
    /// Confirm that it is to be given back
    #[arg(long)]
    pub(crate) yes: bool,
    /// Cut the container off first, as DEL does, if it is still there: it loses this
    /// interface for good
    #[arg(long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) here: HereArgs,
}

fn parse_reach(text: &str) -> Result<String, String> {
    if text.contains("{node}") {
        Ok(text.to_owned())
    } else {
        Err("allowed: a command line with {node} in the place of the node's name".to_owned())
    }
}

impl ReachArgs {
    /// The name of this host among the nodes.
    fn own_name(&self) -> Option<String> {
        if let Some(name) = &self.node_name {
            return Some(name.to_string());
        }
        let name = nix::unistd::gethostname().ok()?;
        Some(name.to_str()?.to_ascii_lowercase())
    }

    /// A command line that runs `command` on a node; `None` where nobody said how.
    fn on(&self, node: &str, command: &str) -> Option<String> {
        let reach = self.reach.as_ref()?;
        Some(format!("{} {command}", reach.replace("{node}", node)))
    }
}

/// Runs what needs no datastore; gives back what does.
pub(crate) fn without_store(verb: &Verb, format: Format) -> Option<ExitCode> {
    match verb {
        Verb::Report { address, here } => Some(report::run(*address, here)),
        Verb::Release(args) => Some(release::run(args, format)),
        Verb::Check(_) | Verb::Show { .. } | Verb::Forget { .. } => None,
    }
}

/// Runs what needs the datastore, and says with which code to exit.
pub(crate) async fn with_store(
    records: &Records,
    format: Format,
    verb: &Verb,
) -> Result<(String, u8)> {
    match verb {
        Verb::Check(args) => check::run(records, format, args).await,
        Verb::Show { address, reach } => {
            let text = show::run(records, format, *address, reach).await?;
            Ok((text, 0))
        }
        Verb::Forget { kind, name, yes } => Ok((forget::run(records, kind, name, *yes).await?, 0)),
        Verb::Report { .. } | Verb::Release(_) => Ok((String::new(), 0)),
    }
}

/// Runs a shell's command line and returns what it prints.
async fn shell(line: &str) -> Result<String, String> {
    let mut command = tokio::process::Command::new("sh");
    command
        .args(["-c", line])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let done = match tokio::time::timeout(gather::PATIENCE, command.output()).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => return Err(format!("sh cannot be started: {error}")),
        Err(_) => return Err(format!("`{line}` took longer than {:?}", gather::PATIENCE)),
    };
    if done.status.success() {
        return String::from_utf8(done.stdout).map_err(|e| format!("`{line}`: {e}"));
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let last = said.lines().last().unwrap_or("it said nothing").to_owned();
    Err(format!("`{line}` failed ({}): {last}", done.status))
}
