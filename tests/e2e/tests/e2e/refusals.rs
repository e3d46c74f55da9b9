//! Wrong input is refused at once, in one line that names the flag, the value and
//! what is allowed, with exit code 2.

use anyhow::{Result, ensure};
use viaduct_e2e::{Raw, refused, run, viaductctl};
use viaduct_lab::{Lab, LabOptions, in_lab};
use viaduct_model::Kind;

fn nothing_but_a_store() -> LabOptions {
    LabOptions {
        nodes: 0,
        pods: 0,
        controller: false,
        ..LabOptions::default()
    }
}

/// The least that an agent must be told.
fn args_of(lab: &Lab) -> [&str; 4] {
    ["--datastore", lab.datastore_url(), "--backend", "vxlan"]
}

/// Tries each with `--datastore` in front.
fn all_refused(
    lab: &Lab,
    program: &str,
    base: &[&str],
    cases: &[(&[&str], &[&str])],
) -> Result<()> {
    let datastore = ["--datastore", lab.datastore_url()];
    for (args, parts) in cases {
        let args = [&datastore[..], base, args].concat();
        refused(program, &args, &[], parts)?;
    }
    Ok(())
}

#[test]
fn an_agent_refuses_names_backends_devices_and_stores_that_cannot_be() {
    in_lab(nothing_but_a_store(), |lab| {
        let long = "n".repeat(300);
        let base = ["--run-dir", "/run/lab/refused", "--http", "127.0.0.1:0"];
        let with = |name: &'static str| ["--backend", "vxlan", "--node-name", name];
        all_refused(
            lab,
            "viaduct-agent",
            &base,
            &[
                (&with("a/b"), &["--node-name", "a/b", "lower-case letters"]),
                (&with(""), &["--node-name", "lower-case letters"]),
                (
                    &with("Upper"),
                    &["--node-name", "Upper", "lower-case letters"],
                ),
                (
                    &["--backend", "vxlan", "--node-name", &long],
                    &["--node-name", "253"],
                ),
                (&["--backend", "ipx"], &["--backend", "ipx", "vxlan"]),
                (
                    &["--backend", "wireguard"],
                    &["--backend", "wireguard", "vxlan"],
                ),
                (&["--backend", ""], &["--backend", "vxlan"]),
                (&[], &["--backend"]),
                (
                    &["--backend", "vxlan", "--iface-regex", "("],
                    &["--iface-regex", "("],
                ),
                (
                    &["--backend", "vxlan", "--public-ip", "fd00::1"],
                    &["--public-ip", "fd00::1"],
                ),
                (
                    &["--backend", "vxlan", "--mtu", "9"],
                    &["--mtu", "9", "576"],
                ),
                (&["--backend", "vxlan", "--vni", "0"], &["--vni", "0", "1"]),
                (&["--backend", "vxlan", "--port", "0"], &["--port", "0"]),
                (&["--backend", "vxlan", "--nonsense"], &["--nonsense"]),
            ],
        )?;
        for url in ["mysql://x", "", "sqlite:", "etcd://"] {
            let args = ["--datastore", url, "--backend", "vxlan", "--node-name", "n"];
            refused("viaduct-agent", &args, &[], &["--datastore", "sqlite:"])?;
        }
        let args = [&args_of(lab)[..], &["--http", "here"]].concat();
        refused("viaduct-agent", &args, &[], &["--http", "here"])?;
        // The environment is a flag as well.
        let env = [("VIADUCT_NODE_NAME".to_owned(), "a/b".to_owned())];
        let args = args_of(lab);
        refused("viaduct-agent", &args, &env, &["a/b"])?;
        // A device may only not be there yet, so that this is no wrong usage.
        let args = [
            &args[..],
            &base,
            &["--node-name", "n", "--iface", "nowhere0"],
        ]
        .concat();
        let absent = run("viaduct-agent", &args, &[])?;
        ensure!(absent.code == Some(1), "{absent:?}");
        for part in ["--iface", "nowhere0", "underlay (172.29.0.1/24)"] {
            ensure!(absent.stderr.contains(part), "without {part}: {absent:?}");
        }
        ensure!(
            !std::path::Path::new("/run/lab/refused").exists(),
            "a run directory was made"
        );
        Ok(())
    });
}

#[test]
fn a_controller_refuses_pools_that_cannot_be() {
    in_lab(nothing_but_a_store(), |lab| {
        all_refused(
            lab,
            "viaduct-controller",
            &["--http", "127.0.0.1:0"],
            &[
                (
                    &["--pool", "fd00:64::/48"],
                    &["--pool", "fd00:64::/48", "IPv4"],
                ),
                (
                    &["--pool", "10.0.0.0/16,10.1.0.0/16"],
                    &["--pool", "10.1.0.0/16", "IPv6"],
                ),
                (&["--pool", "10.0.0.0"], &["--pool", "10.0.0.0"]),
                (&["--pool", "10.0.0.0/33"], &["--pool", "10.0.0.0/33"]),
                (&["--pool", "pods"], &["--pool", "pods"]),
                (&["--pool", ""], &["--pool"]),
                (
                    &["--pool", "127.0.0.0/16"],
                    &["--pool", "127.0.0.0/16", "loopback"],
                ),
                (
                    &["--pool", "10.0.0.0/24", "--block-size", "16"],
                    &["--block-size", "16", "24 to 32"],
                ),
                (
                    &["--pool", "10.0.0.0/24", "--block-size", "33"],
                    &["--block-size", "33", "24 to 32"],
                ),
                (&["--block-size", "x"], &["--block-size", "x"]),
                (&["--quarantine", "soon"], &["--quarantine", "soon", "5m"]),
                (&["--reclaim-after=-1"], &["--reclaim-after", "-1", "24h"]),
                (
                    &["--leader-elect=maybe"],
                    &["--leader-elect", "maybe", "true"],
                ),
            ],
        )?;
        for url in ["mysql://x", "", "sqlite:", "etcd://"] {
            let args = ["--datastore", url];
            refused(
                "viaduct-controller",
                &args,
                &[],
                &["--datastore", "sqlite:"],
            )?;
        }
        let raw = Raw::open(lab)?;
        ensure!(raw.all(Kind::Pool)?.is_empty(), "a refused pool was made");
        Ok(())
    });
}

#[test]
fn viaductctl_refuses_names_and_stores_that_cannot_be() {
    in_lab(nothing_but_a_store(), |lab| {
        let env = lab.environment();
        let long = "p".repeat(300);
        let create = |name| ["pools", "create", name, "--cidr", "10.9.0.0/16"];
        for (args, parts) in [
            (&create("a/b")[..], &["a/b", "lower-case letters"][..]),
            (&create(""), &["lower-case letters"]),
            (&create(&long), &["300 bytes", "253"]),
            (
                &["pools", "create", "p", "--cidr", "10.9.0.0"],
                &["--cidr", "10.9.0.0"],
            ),
            (&["pools", "create", "p"], &["--cidr"]),
            (&["lab", "demo", "--nodes", "0"], &["--nodes", "0", "1"]),
            (
                &["lab", "demo", "--nodes", "201"],
                &["--nodes", "201", "200"],
            ),
            (&["status", "-o", "xml"], &["--output", "xml", "json"]),
            (&["stat"], &["stat"]),
            (
                &["--datastore", "mysql://x", "status"],
                &["--datastore", "mysql://x", "sqlite:"],
            ),
            (
                &["--datastore", "mysql", "lab", "demo"],
                &["--datastore", "mysql", "etcd"],
            ),
        ] {
            refused("viaductctl", args, &env, parts)?;
        }
        Ok(())
    });
}

#[test]
fn pools_that_overlap_each_other_or_the_underlay_are_refused_with_both_named() {
    let options = LabOptions {
        nodes: 1,
        pods: 0,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let raw = Raw::open(lab)?;
        let before = raw.all(Kind::Pool)?;
        for (cidr, size, parts) in [
            (
                "10.64.7.0/24",
                "26",
                &["blue", "default", "10.64.0.0/16"][..],
            ),
            ("10.0.0.0/8", "26", &["blue", "default", "10.64.0.0/16"]),
            ("10.64.0.0/16", "26", &["blue", "default"]),
            ("172.29.0.0/24", "26", &["blue", "172.29.0.0/24", "n1"]),
            ("172.16.0.0/12", "26", &["blue", "172.29.0.0/24", "n1"]),
            ("10.9.0.0/24", "16", &["blockSize", "16", "24 to 32"]),
            ("10.9.0.0/8", "8", &["blockSize", "8", "16 to 32"]),
        ] {
            let args = [
                "pools",
                "create",
                "blue",
                "--cidr",
                cidr,
                "--block-size",
                size,
            ];
            let run = viaductctl(lab, &args)?;
            ensure!(matches!(run.code, Some(1 | 2)), "{cidr}: {run:?}");
            ensure!(
                run.stderr.trim_end().lines().count() == 1,
                "{cidr}: {run:?}"
            );
            for part in parts {
                ensure!(run.stderr.contains(part), "{cidr}: without {part}: {run:?}");
            }
            ensure!(
                raw.all(Kind::Pool)? == before,
                "{cidr} was made all the same"
            );
        }
        let good = ["pools", "create", "blue", "--cidr", "10.9.0.0/16"];
        viaductctl(lab, &good)?.worked()?;
        let again = viaductctl(lab, &good)?;
        ensure!(
            again.code == Some(1) && again.stderr.contains("blue"),
            "{again:?}"
        );
        Ok(())
    });
}

#[test]
fn every_program_tells_its_version_and_its_flags() {
    in_lab(nothing_but_a_store(), |_| {
        for program in ["viaduct-agent", "viaduct-controller", "viaductctl"] {
            let version = run(program, &["--version"], &[])?.worked()?;
            ensure!(version.starts_with(&format!("{program} ")), "{version}");
            let help = run(program, &["--help"], &[])?.worked()?;
            for flag in ["--datastore", "--etcd-prefix", "VIADUCT_DATASTORE"] {
                ensure!(
                    help.contains(flag),
                    "{program} --help without {flag}: {help}"
                );
            }
        }
        Ok(())
    });
}
