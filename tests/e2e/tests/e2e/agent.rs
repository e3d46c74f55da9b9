//! What an agent shows of itself, and how it stops.

use anyhow::{Context, Result, ensure};
use viaduct_e2e::{Pinging, eventually, leaks, ours};
use viaduct_lab::node::{AGENT_HTTP, READY_TIMEOUT};
use viaduct_lab::{Lab, LabOptions, Signal, http, in_lab};

#[test]
fn subnet_env_holds_flannels_four_keys() {
    in_lab(LabOptions::default(), |lab| {
        for node in lab.nodes() {
            let text = eventually(|| {
                std::fs::read_to_string(node.run_dir().join("subnet.env")).context("subnet.env")
            })?;
            let lines: Vec<&str> = text.lines().collect();
            let [network, subnet, mtu, masquerade] = lines[..] else {
                anyhow::bail!("not four lines: {text}");
            };
            ensure!(network == "FLANNEL_NETWORK=10.64.0.0/16", "{text}");
            let backend = lab.options().backend;
            let fits = 1500 - backend.overhead();
            ensure!(mtu == format!("FLANNEL_MTU={fits}"), "{text}");
            ensure!(masquerade == "FLANNEL_IPMASQ=true", "{text}");
            let Some(tunnel) = backend.tunnel() else {
                continue;
            };
            // The node's own address with its block's length.
            let own = node.ip(&format!("-4 -o addr show dev {tunnel}"))?;
            let address = own
                .split_whitespace()
                .skip_while(|word| *word != "inet")
                .nth(1)
                .and_then(|inet| inet.split('/').next())
                .with_context(|| own.clone())?;
            ensure!(
                subnet == format!("FLANNEL_SUBNET={address}/26"),
                "{text} {own}"
            );
        }
        Ok(())
    });
}

#[test]
fn health_readiness_and_metrics_answer() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let get = |path| http::get(node.netns(), AGENT_HTTP, path);
        ensure!(get("/healthz")?.status == 200);
        ensure!(get("/readyz")?.body.trim() == "ok");
        ensure!(get("/nothing")?.status == 404);
        ensure!((node.metric("viaduct_peers ")? - 1.0).abs() < 0.1);
        ensure!((node.metric("viaduct_ready ")? - 1.0).abs() < 0.1);
        ensure!(node.metric("viaduct_cni_requests_total{verb=\"add\",result=\"ok\"} ")? > 0.5);
        ensure!(lab.controller_http("/healthz")?.status == 200);
        let ready = lab.controller_http("/readyz")?;
        ensure!(
            ready.status == 200 && ready.body.contains("leading"),
            "{ready:?}"
        );
        let metrics = lab.controller_http("/metrics")?.body;
        for sample in ["viaduct_controller_leader 1", "viaduct_controller_nodes 2"] {
            ensure!(metrics.contains(sample), "no {sample} in {metrics}");
        }
        Ok(())
    });
}

#[test]
fn sigterm_ends_an_agent_with_success_and_leaves_the_dataplane_in_place() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        let before = ours(&node)?;
        let pods = lab.pods();
        let stream = Pinging::start(&pods[0], &pods[1])?;
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let status = node.kill_agent(signal)?;
            ensure!(status.success(), "{signal} ended it with {status}");
            let after = ours(&node)?;
            ensure!(before == after, "{before:#?} became {after:#?}");
            // A clean stop gives the name up at once.
            node.start_agent()?;
            node.await_ready(READY_TIMEOUT)?;
        }
        stream.lost_nothing(50)?;
        leaks(&node)?;
        controllers_stop_cleanly(lab)
    });
}

fn controllers_stop_cleanly(lab: &Lab) -> Result<()> {
    let status = lab.controller().kill(Signal::SIGTERM)?;
    ensure!(status.success(), "the controller ended with {status}");
    Ok(())
}

#[test]
fn once_registers_programs_the_kernel_and_ends() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.new_node()?;
        let mut args = node.agent().args();
        args.push("--once".to_owned());
        node.agent().set_args(args);
        node.start_agent()?;
        let status = eventually(|| node.agent().ended().context("it still runs"))?;
        ensure!(status.success(), "{status}");
        let lines = ours(&node)?;
        let to_peer = |line: &&String| line.starts_with("route") && line.contains(" via ");
        let peers = lines.iter().filter(to_peer).count();
        ensure!(peers == 2, "{lines:#?}");
        Ok(())
    });
}

#[test]
fn the_underlay_is_the_default_routes_or_what_a_flag_says_and_never_guessed() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let node = lab.new_node()?;
        node.ip("link add other type veth peer name far")?;
        node.ip("addr add 198.18.9.1/24 dev other")?;
        node.ip("addr add 198.18.9.2/32 dev other")?;
        node.ip("link set other up")?;
        node.ip("link set far up")?;
        let base = node.agent().args();
        let with = |more: &[&str]| {
            let more = more.iter().map(ToString::to_string);
            node.agent()
                .set_args(base.iter().cloned().chain(more).collect());
        };
        for (wrong, told) in [
            (
                &["--iface", "absent"][..],
                &["eth0", "172.29.0.11", "198.18.9.1"][..],
            ),
            (
                &["--iface", "other"],
                &["ambiguous", "198.18.9.1", "198.18.9.2"],
            ),
            (
                &["--iface-regex", "^(eth0|other)$"],
                &["ambiguous", "eth0", "172.29.0.11", "other", "198.18.9.1"],
            ),
            (
                &["--iface-regex", "^no"],
                &["eth0", "172.29.0.11", "198.18.9.1"],
            ),
        ] {
            with(wrong);
            let so_far = node.agent().log().len();
            node.start_agent()?;
            let status = eventually(|| node.agent().ended().context("it still runs"))?;
            ensure!(matches!(status.code(), Some(1 | 2)), "{wrong:?}: {status}");
            let said = node.agent().log()[so_far..].to_owned();
            for part in wrong.iter().chain(told) {
                ensure!(said.contains(part), "{wrong:?}: without {part}: {said}");
            }
            ensure!(ours(&node)?.is_empty(), "{wrong:?} touched the kernel");
        }
        for (right, address) in [
            (&[][..], "172.29.0.11"),
            (&["--iface", "eth0"], "172.29.0.11"),
            (&["--iface-regex", "^eth"], "172.29.0.11"),
            (&["--can-reach", "198.18.9.77"], "198.18.9.1"),
            (&["--can-reach", "172.29.0.1"], "172.29.0.11"),
        ] {
            with(right);
            node.start_agent()?;
            node.await_ready(READY_TIMEOUT)?;
            if let Some(tunnel) = lab.options().backend.tunnel() {
                let link = node.ip(&format!("-d link show {tunnel}"))?;
                ensure!(
                    link.contains(&format!("local {address} ")),
                    "{right:?}: {link}"
                );
            }
            node.kill_agent(Signal::SIGTERM)?;
        }
        Ok(())
    });
}
