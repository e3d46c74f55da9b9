//! `viaductctl install conflist`: the file that makes a container runtime start pods.
//!
//! It is written last, when the agent says that it is ready, because from then on the
//! kubelet calls the node ready. Never taken away here: pods start and stop without the
//! agent's container for as long as there is an agent.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{ready, replace};
use crate::places::{Conflist, PluginDir};

/// How often it is tried while the agent is not ready.
const EAGER: Duration = Duration::from_millis(250);

/// How often it is looked at once it is there.
const CALM: Duration = Duration::from_secs(10);

/// What is said of the plugins' directory here.
const PLUGINS: &str =
    "Where the container runtime looks for plugins: all that are named must be there";

/// What is said of the file's name here.
const NAME: &str = "The name that it gets there; runtimes take the first by name";

#[derive(Debug, Args)]
#[command(
    mut_arg("conflist_dir", |arg| arg.long("dir")),
    mut_arg("conflist_name", |arg| arg.long("name").help(NAME)),
    mut_arg("plugin_dir", |arg| arg.help(PLUGINS)),
)]
pub(crate) struct ConflistArgs {
    /// The configuration to install
    #[arg(long, env = "VIADUCT_CONFLIST", value_name = "FILE")]
    from: PathBuf,
    #[command(flatten)]
    to: Conflist,
    #[command(flatten)]
    plugins: PluginDir,
    /// Where the agent serves /readyz
    #[arg(
        long,
        env = "VIADUCT_HTTP",
        default_value = "127.0.0.1:9870",
        value_name = "ADDRESS:PORT"
    )]
    agent: SocketAddr,
    /// End as soon as it is installed
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: &ConflistArgs) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(keep(args))
}

async fn keep(args: &ConflistArgs) -> Result<()> {
    // As a container's first process it would not be ended by a signal it does not take.
    let mut term = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let target = args.to.path();
    let mut told = String::new();
    loop {
        let pause = match step(args, &target).await {
            Ok(written) => {
                if written {
                    println!("{} is written: pods can start", target.display());
                }
                if args.once {
                    return Ok(());
                }
                told.clear();
                CALM
            }
            Err(why) => {
                // A line for each reason, not for each try.
                if told != why {
                    println!("{} is not written: {why}", target.display());
                    told = why;
                }
                EAGER
            }
        };
        tokio::select! {
            _ = term.recv() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Brings the file up to date if it can be now; says whether there was need.
async fn step(args: &ConflistArgs, target: &Path) -> Result<bool, String> {
    let wanted = fs::read_to_string(&args.from)
        .map_err(|error| format!("{} cannot be read: {error}", args.from.display()))?;
    if fs::read_to_string(target).is_ok_and(|there| there == wanted) {
        return Ok(false);
    }
    let missing: Vec<String> = plugins(&wanted)
        .map_err(|why| format!("{}: {why}", args.from.display()))?
        .into_iter()
        .filter(|plugin| !args.plugins.plugin_dir.join(plugin).is_file())
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "it names plugins that are not in {}: {}",
            args.plugins.plugin_dir.display(),
            missing.join(", ")
        ));
    }
    ready::ask(args.agent).await?;
    replace(target, wanted.as_bytes(), 0o644).map_err(|error| error.to_string())?;
    Ok(true)
}

/// The programs that a configuration names.
fn plugins(conflist: &str) -> Result<BTreeSet<String>, String> {
    let conflist: Value =
        serde_json::from_str(conflist).map_err(|error| format!("it is no JSON: {error}"))?;
    let listed = conflist["plugins"]
        .as_array()
        .ok_or("it has no list \"plugins\"")?;
    let mut names = BTreeSet::new();
    for plugin in listed {
        let name = plugin["type"]
            .as_str()
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .ok_or("a plugin has no \"type\", which is the name of a program")?;
        names.insert(name.to_owned());
    }
    if !names.contains("viaduct") {
        return Err("it does not name the plugin viaduct".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const CONFLIST: &str =
        r#"{"name":"viaduct","plugins":[{"type":"viaduct"},{"type":"portmap"}]}"#;

    #[test]
    fn a_configuration_names_programs_and_ours_among_them() {
        assert_eq!(
            plugins(CONFLIST).unwrap(),
            BTreeSet::from(["portmap".to_owned(), "viaduct".to_owned()])
        );
        for (wrong, why) in [
            ("{", "no JSON"),
            (r#"{"type":"viaduct"}"#, "no list"),
            (r#"{"plugins":[{}]}"#, "no \"type\""),
            (r#"{"plugins":[{"type":"../x"}]}"#, "no \"type\""),
            (r#"{"plugins":[{"type":"ptp"}]}"#, "does not name"),
        ] {
            let said = plugins(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }

    #[tokio::test]
    async fn it_waits_for_the_plugins_then_for_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let args = ConflistArgs {
            from: root.path().join("from"),
            to: Conflist::at(root.path().join("net.d"), "10-viaduct.conflist"),
            plugins: PluginDir {
                plugin_dir: root.path().into(),
            },
            agent: listener.local_addr().unwrap(),
            once: true,
        };
        let target = args.to.path();
        fs::create_dir(root.path().join("net.d")).unwrap();
        fs::write(&args.from, CONFLIST).unwrap();
        fs::write(root.path().join("viaduct"), "").unwrap();
        let why = step(&args, &target).await.unwrap_err();
        assert!(why.ends_with(": portmap"), "{why}");

        fs::write(root.path().join("portmap"), "").unwrap();
        let agent = tokio::spawn(async move {
            for status in ["503 Service Unavailable\r\n\r\nno block", "200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A request that nobody read would make the end of the answer a reset.
                let read = stream.read(&mut [0; 1024]).await.unwrap();
                assert_ne!(read, 0);
                let answer = format!("HTTP/1.0 {status}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let why = step(&args, &target).await.unwrap_err();
        assert_eq!(why, "the agent is not ready: no block");
        assert!(!target.exists());
        assert_eq!(step(&args, &target).await, Ok(true));
        assert_eq!(fs::read_to_string(&target).unwrap(), CONFLIST);
        agent.await.unwrap();
        // Nobody answers any more, and nobody is asked.
        assert_eq!(step(&args, &target).await, Ok(false));
    }
}
