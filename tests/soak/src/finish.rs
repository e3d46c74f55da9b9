//! The end: everything settles, the address managers agree, every pod reaches every pod;
//! then all pods go, and nothing may be left.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::leaks;
use viaduct_lab::{Matrix, Pod, eventually, in_parallel};

use crate::scene::{NODES, PATIENCE, Scene};
use crate::summary::Summary;

/// How many pods a node is given at the end, beside those that stayed.
const FRESH: usize = 2;

/// Looks at everything while pods are there, and again when all are gone. What is wrong
/// goes to the summary.
pub(crate) fn finish(scene: &Scene, summary: &mut Summary) {
    type Step = fn(&Scene) -> Result<String>;
    let steps: [(&str, Step); 7] = [
        ("nothing but the pods that stayed", only_those_that_stay),
        ("blocks", blocks),
        ("ipam check", ipam_check),
        ("every pod reaches every pod", everybody_reaches_everybody),
        ("ipam check when all pods are gone", without_pods),
        ("no damaged records, no panics", unharmed),
        ("a clean end", stop),
    ];
    for (what, step) in steps {
        match step(scene) {
            Ok(said) => summary.end.push(format!("{what}: {said}")),
            Err(error) => summary.faults.push(format!("{what}: {error:#}")),
        }
    }
}

/// Ledgers, devices, routes, neighbours and addresses in use are those of the pods that
/// stayed.
fn only_those_that_stay(scene: &Scene) -> Result<String> {
    let mut ids: Vec<String> = scene.book().pods().into_iter().map(str::to_owned).collect();
    let mut stay: Vec<String> = scene
        .stays
        .iter()
        .map(|(_, pod)| pod.container_id.clone())
        .collect();
    ids.sort();
    stay.sort();
    ensure!(ids == stay, "{ids:?} have an address, and {stay:?} stay");
    nothing_else(scene)?;
    Ok(format!("{} pods", stay.len()))
}

fn nothing_else(scene: &Scene) -> Result<()> {
    in_parallel(NODES, &scene.nodes, |node| {
        eventually(PATIENCE, || leaks(node))
    })
    .into_iter()
    .collect()
}

/// How the nodes grew and shrank, by what the programs say of it.
fn blocks(scene: &Scene) -> Result<String> {
    let (mut given, mut back) = (0, 0);
    for daemon in scene.daemons()? {
        let log = daemon.log();
        given += log.matches("gave a block").count();
        back += log.matches("giving back a block").count();
    }
    Ok(format!("{given} were given to nodes, {back} went back"))
}

fn ipam_check(scene: &Scene) -> Result<String> {
    let text = eventually(PATIENCE, || {
        let text = scene.ipam_check()?.worked()?;
        ensure!(text.starts_with("clean: "), "{text}");
        Ok(text)
    })?;
    Ok(text.trim().to_owned())
}

/// Those that stayed and some that come now: pings of every size, TCP, the nodes too.
fn everybody_reaches_everybody(scene: &Scene) -> Result<String> {
    for node in &scene.nodes {
        for n in 0..FRESH {
            let pod = node.add_pod(&format!("fresh{n}"))?;
            scene.book().given(pod.ip, &pod.container_id)?;
        }
    }
    let matrix = Matrix::run(&scene.lab)?;
    let failures = matrix.failures();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(format!(
        "{} pairs of pods, {} of node and pod",
        matrix.pods.len(),
        matrix.nodes.len()
    ))
}

fn without_pods(scene: &Scene) -> Result<String> {
    let gone = in_parallel(NODES, &scene.nodes, |node| -> Result<()> {
        let pods: Vec<Pod> = node.pods();
        pods.iter().try_for_each(|pod| node.del_pod(pod))
    });
    gone.into_iter().collect::<Result<()>>()?;
    nothing_else(scene)?;
    let text = ipam_check(scene)?;
    ensure!(text.contains(" 0 attachments"), "{text}");
    Ok(text)
}

fn unharmed(scene: &Scene) -> Result<String> {
    for node in &scene.nodes {
        let damaged = node.metric("viaduct_cni_damaged_records ")?;
        ensure!(damaged < 0.5, "{}: {damaged} damaged records", node.name());
    }
    for daemon in scene.daemons()? {
        let log = daemon.log();
        if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
            anyhow::bail!("{}: {line}", daemon.name());
        }
    }
    Ok("none".to_owned())
}

fn stop(scene: &Scene) -> Result<String> {
    scene.lab.stop()?;
    scene.controllers().into_iter().try_for_each(|c| c.stop())?;
    scene.lab.store().kill().context("etcd")?;
    Ok("all programs ended with success after SIGTERM".to_owned())
}
