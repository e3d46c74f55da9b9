//! The lab as people use it: as root and as an ordinary user, and gone without a
//! trace afterwards, also when it is killed.
//!
//! Each of these tests runs `viaductctl lab` inside a lab, whose only use is that
//! nothing else runs there: what is left over is easily seen.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Run, eventually};
use viaduct_lab::daemon::Daemon;
use viaduct_lab::privilege::Privilege;
use viaduct_lab::{LabOptions, Signal, command, in_lab};

use crate::stage::{Stage, User, nothing_is_left, traces};

fn empty() -> LabOptions {
    LabOptions {
        nodes: 0,
        pods: 0,
        controller: false,
        ..LabOptions::default()
    }
}

fn demo_proves_the_network(user: User, store: &[&str]) -> Result<()> {
    let stage = Stage::set()?;
    let before = traces()?;
    let size = ["lab", "demo", "--nodes", "2", "--pods", "1"];
    let run = stage.run(user, &[store, &size].concat())?;
    ensure!(run.code == Some(0), "{run:?}");
    for part in [
        "n1/p1",
        "n2/p1",
        "DF 1450",
        "ok both ways",
        "unchanged",
        "refused",
    ] {
        ensure!(run.stdout.contains(part), "no {part} in {}", run.stdout);
    }
    ensure!(!run.stdout.contains("FAILED"), "{}", run.stdout);
    ensure!(run.stderr.contains("everything works"), "{}", run.stderr);
    nothing_is_left(&before)
}

#[test]
fn the_demo_proves_the_network_and_leaves_nothing_as_root() {
    in_lab(empty(), |_| demo_proves_the_network(User::Root, &[]));
}

#[test]
fn the_demo_proves_the_network_and_leaves_nothing_as_an_ordinary_user() {
    in_lab(empty(), |_| demo_proves_the_network(User::Ordinary, &[]));
}

#[test]
fn the_demo_proves_the_network_on_an_etcd_of_its_own() {
    in_lab(empty(), |_| {
        demo_proves_the_network(User::Ordinary, &["--datastore", "etcd"])
    });
}

#[test]
fn the_demo_reaches_an_etcd_on_the_loopback_that_it_was_started_from() {
    in_lab(empty(), |_| {
        let client = "http://127.0.0.1:2399";
        let peer = "http://127.0.0.1:2398";
        let args = [
            ["--name", "outside"],
            ["--data-dir", "/run/lab/outside"],
            ["--listen-client-urls", client],
            ["--advertise-client-urls", client],
            ["--listen-peer-urls", peer],
            ["--initial-advertise-peer-urls", peer],
            ["--initial-cluster", "outside=http://127.0.0.1:2398"],
        ];
        Privilege::Plain.own_dir(Path::new("/run/lab/outside"), 0o700)?;
        let args = args
            .as_flattened()
            .iter()
            .map(ToString::to_string)
            .collect();
        let etcd = Daemon::new("outside", "etcd", args, None, Privilege::Plain);
        etcd.start()?;
        let keys = || {
            command::run(
                "etcdctl",
                ["--endpoints", client, "get", "--prefix", "--keys-only", ""],
            )
        };
        eventually(keys)?;
        demo_proves_the_network(User::Root, &["--datastore", "etcd://127.0.0.1:2399"])?;
        let keys = keys()?;
        ensure!(
            keys.contains("/viaduct/v1/nodes/n2"),
            "not this store: {keys}"
        );
        ensure!(!keys.contains("claims"), "a lease was left: {keys}");
        etcd.kill(Signal::SIGKILL)?;
        Ok(())
    });
}

/// Kills the process that was started, at a moment that its output tells.
fn killed_demo_leaves_nothing(user: User) -> Result<()> {
    let stage = Stage::set()?;
    let before = traces()?;
    for moment in ["starting 2 nodes", "adding 2 pods", "trying everybody"] {
        let told = stage.file("told");
        let size = ["lab", "demo", "--nodes", "2", "--pods", "1"];
        let mut demo = stage
            .viaductctl(user, &size)?
            .stdout(Stdio::null())
            .stderr(File::create(&told)?)
            .spawn()?;
        eventually(|| {
            let text = std::fs::read_to_string(&told)?;
            ensure!(text.contains(moment), "{moment} is not told: {text}");
            Ok(())
        })?;
        ensure!(
            traces()?.difference(&before).count() > 5,
            "nothing was there at all"
        );
        demo.kill()?;
        demo.wait()?;
        nothing_is_left(&before).with_context(|| format!("killed at: {moment}"))?;
    }
    Ok(())
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_as_root() {
    in_lab(empty(), |_| killed_demo_leaves_nothing(User::Root));
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_as_an_ordinary_user() {
    in_lab(empty(), |_| killed_demo_leaves_nothing(User::Ordinary));
}

fn a_lab_goes_up_and_down(user: User) -> Result<()> {
    let stage = Stage::set()?;
    let before = traces()?;
    let absent = stage.run(user, &["lab", "exec", "n1", "--", "true"])?;
    ensure!(
        absent.code == Some(1) && absent.stderr.contains("lab up"),
        "{absent:?}"
    );
    let up = stage.run(user, &["lab", "up", "--nodes", "2", "--pods", "1"])?;
    ensure!(
        up.code == Some(0) && up.stdout.contains("lab down"),
        "{up:?}"
    );
    let twice = stage.run(user, &["lab", "up", "--nodes", "1"])?;
    ensure!(
        twice.code == Some(1) && twice.stderr.contains("up already"),
        "{twice:?}"
    );
    let exec = |place, program: &[&str]| {
        stage
            .run(user, &[&["lab", "exec", place, "--"], program].concat())
            .and_then(Run::worked)
    };
    ensure!(exec("n1", &["ip", "route"])?.contains("proto 87"));
    ensure!(exec("n2", &["viaductctl", "status"])?.contains("2 of them alive"));
    let address = exec("n2/p1", &["ip", "-4", "-o", "addr", "show", "eth0"])?;
    let address = address
        .split_whitespace()
        .nth(3)
        .and_then(|a| a.split('/').next());
    exec(
        "n1/p1",
        &["ping", "-c", "1", "-W", "1", address.context("no address")?],
    )?;
    let code = stage.run(user, &["lab", "exec", "n1", "--", "sh", "-c", "exit 7"])?;
    ensure!(code.code == Some(7), "{code:?}");
    for place in ["n9", "n1/p9", "../n1"] {
        let wrong = stage.run(user, &["lab", "exec", place, "--", "true"])?;
        ensure!(wrong.code == Some(1), "{place}: {wrong:?}");
    }
    stage.run(user, &["lab", "down"])?.worked()?;
    nothing_is_left(&before)?;
    stage.run(user, &["lab", "down"])?.worked()?;
    Ok(())
}

#[test]
fn a_lab_goes_up_can_be_looked_at_and_goes_down_as_root() {
    in_lab(empty(), |_| a_lab_goes_up_and_down(User::Root));
}

#[test]
fn a_lab_goes_up_can_be_looked_at_and_goes_down_as_an_ordinary_user() {
    in_lab(empty(), |_| a_lab_goes_up_and_down(User::Ordinary));
}
