//! `viaductctl uninstall` leaves a node clean, and waits for agent and pods to be gone.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use viaduct_e2e::ours;
use viaduct_lab::{LabOptions, Node, Signal, in_lab};

const PLUGINS: &str = "/run/lab/uninstall/bin";
const CONFIGURATIONS: &str = "/run/lab/uninstall/net.d";

fn uninstall(node: &Node, more: &[&str]) -> Result<String> {
    let run_dir = node.run_dir().display().to_string();
    let mut args = vec!["uninstall", "--run-dir", &run_dir];
    args.extend(["--plugin-dir", PLUGINS, "--conflist-dir", CONFIGURATIONS]);
    args.extend_from_slice(more);
    node.run("viaductctl", &args)
}

fn names(dir: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[test]
fn uninstall_waits_for_agent_and_pods_and_then_leaves_nothing() {
    let options = LabOptions {
        nodes: 1,
        pods: 1,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.node("n1")?;
        for (dir, files) in [
            (PLUGINS, ["viaduct", "portmap"]),
            (CONFIGURATIONS, ["10-viaduct.conflist", "87-other.conflist"]),
        ] {
            fs::create_dir_all(dir)?;
            for file in files {
                fs::write(Path::new(dir).join(file), "")?;
            }
        }
        let refused = |more: &[&str], why: &str| -> Result<()> {
            let said = uninstall(&node, more).err().map(|e| format!("{e:#}"));
            let expected = said.as_deref().is_some_and(|said| said.contains(why));
            ensure!(expected, "{why:?} is not in {said:?}");
            ensure!(names(CONFIGURATIONS)?.len() == 2, "something was removed");
            ensure!(!ours(&node)?.is_empty(), "something was removed");
            Ok(())
        };
        refused(&["--cut-off-pods"], "stop it first")?;
        node.kill_agent(Signal::SIGKILL)?;
        refused(&[], "1 pods of this host have addresses of Viaduct")?;

        for _ in 0..2 {
            let said = uninstall(&node, &["--cut-off-pods"])?;
            ensure!(said.contains("nothing of Viaduct's is left"), "{said}");
            let left = ours(&node)?;
            ensure!(left.is_empty(), "{left:#?}");
            ensure!(names(PLUGINS)? == ["portmap"]);
            ensure!(names(CONFIGURATIONS)? == ["87-other.conflist"]);
            let state = names(&node.run_dir().display().to_string())?;
            ensure!(state == ["agent.lock"], "{state:?}");
        }
        Ok(())
    });
}
