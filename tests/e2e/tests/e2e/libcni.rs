//! Through the real libcni, chained with the real plugins, as a container runtime
//! would: every verb in every version.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use viaduct_e2e::{Libcni, Run, eventually, leaks, programs_of_cni};
use viaduct_lab::{LabOptions, Node, Signal, Stage, in_lab, netns};

fn nodes(nodes: usize) -> LabOptions {
    LabOptions {
        nodes,
        pods: 0,
        ..LabOptions::default()
    }
}

/// Inside a lab there is no way to fetch what is to be built.
fn built_before() {
    if let Stage::Outer = Stage::current() {
        programs_of_cni().expect("cnitool and the CNI plugins");
    }
}

fn ours(node: &Node) -> Value {
    json!({
        "type": "viaduct",
        "socket": node.run_dir().join("cni.sock"),
        "capabilities": {"ips": true, "mac": true},
        "dns": {"nameservers": ["10.96.0.10"]},
    })
}

fn list(name: &str, version: &str, plugins: &[Value]) -> Value {
    json!({"cniVersion": version, "name": name, "plugins": plugins})
}

fn chain(node: &Node) -> Vec<Value> {
    vec![
        ours(node),
        json!({"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
    ]
}

fn address(result: &Value) -> Result<IpAddr> {
    let text = result["ips"][0]["address"].as_str().context("no address")?;
    Ok(text.split('/').next().unwrap_or_default().parse()?)
}

fn refused(run: &Run, parts: &[&str]) -> Result<()> {
    ensure!(run.code == Some(1), "not refused: {run:?}");
    for part in parts {
        ensure!(run.stderr.contains(part), "without {part:?}: {run:?}");
    }
    Ok(())
}

#[test]
fn a_chain_with_portmap_and_bandwidth_is_added_checked_and_deleted() {
    built_before();
    in_lab(nodes(2), |lab| {
        let (node, other) = (lab.node("n1")?, lab.node("n2")?);
        let cni = Libcni::on(&node)?;
        cni.list(&list("chained", "1.1.0", &chain(&node)))?;
        let pod = netns::add("pod")?;
        let wishes = json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 800_000_000, "ingressBurst": 800_000_000,
                "egressRate": 800_000_000, "egressBurst": 800_000_000},
            "mac": "02:00:5e:00:53:01",
        })
        .to_string();
        let env = [
            ("CAP_ARGS", wishes.as_str()),
            ("CNI_ARGS", "IgnoreUnknown=1;FOO=bar"),
        ];
        let cni = |verb| cni.run(verb, "chained", &pod, &env);
        cni("status")?.worked()?;
        let result: Value = serde_json::from_str(&cni("add")?.worked()?)?;
        ensure!(result["cniVersion"] == "1.1.0", "{result}");
        ensure!(result["dns"]["nameservers"][0] == "10.96.0.10", "{result}");
        ensure!(
            result["interfaces"][1]["mac"] == "02:00:5e:00:53:01",
            "{result}"
        );
        let ip = address(&result)?;
        cni("check")?.worked()?;

        // As on every Kubernetes node: what comes by the underlay may be forwarded.
        node.run("sysctl", &["-qw", "net.ipv4.conf.eth0.forwarding=1"])?;
        // The chain works: a connection to the node's port ends in the pod.
        let listener = netns::within(&pod, || Ok(TcpListener::bind((ip, 80))?))?;
        let target = SocketAddr::new(node.address().into(), 8080);
        let caller = netns::within(other.netns(), || {
            Ok(TcpStream::connect_timeout(&target, Duration::from_secs(5))?)
        })?;
        let (accepted, seen) = listener.accept()?;
        ensure!(
            seen.ip() == other.address(),
            "{seen} is not {}",
            other.address()
        );
        drop((caller, accepted));
        let shaped = node.run("tc", &["qdisc", "show"])?;
        ensure!(shaped.contains("tbf"), "nothing is shaped: {shaped}");

        // Again is no new attachment, and the first stands.
        cni("check")?.worked()?;
        netns::within(&pod, || {
            viaduct_lab::command::run("ip", ["route", "del", "default"])
        })?;
        refused(&cni("check")?, &["default route via 169.254.1.1", "eth0"])?;
        cni("del")?.worked()?;
        cni("del")?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn every_version_of_the_specification_is_spoken_and_the_best_is_chosen() {
    built_before();
    in_lab(nodes(1), |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let name = format!("v{version}");
            cni.list(&list(&name, version, &chain(&node)))?;
            let pod = netns::add(&name)?;
            let result = cni.run("add", &name, &pod, &[])?.worked()?;
            let result: Value = serde_json::from_str(&result)?;
            ensure!(result["cniVersion"] == version, "{result}");
            node.run(
                "ping",
                &["-c", "1", "-W", "1", &address(&result)?.to_string()],
            )?;
            let check = cni.run("check", &name, &pod, &[])?;
            match version {
                // libcni itself says so.
                "0.3.1" => refused(&check, &["CHECK"])?,
                _ => drop(check.worked()?),
            }
            cni.run("del", &name, &pod, &[])?.worked()?;
        }
        let mut several = list("several", "0.4.0", &chain(&node));
        several["cniVersions"] = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        cni.list(&several)?;
        let pod = netns::add("several")?;
        let result = cni.run("add", "several", &pod, &[])?.worked()?;
        let result: Value = serde_json::from_str(&result)?;
        ensure!(result["cniVersion"] == "1.1.0", "{result}");
        cni.run("del", "several", &pod, &[])?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn gc_takes_away_what_the_runtime_forgot() {
    built_before();
    in_lab(nodes(1), |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        cni.list(&list("forgetful", "1.1.0", &chain(&node)))?;
        cni.list(&list("other", "1.1.0", &[ours(&node)]))?;
        let pods = ["a", "b", "c"].map(netns::add);
        for pod in pods.iter().flatten() {
            cni.run("add", "forgetful", pod, &[])?.worked()?;
        }
        let kept = netns::add("kept")?;
        let result = cni.run("add", "other", &kept, &[])?.worked()?;
        let ip = address(&serde_json::from_str(&result)?)?;
        // The runtime lost its memory, and one container is gone altogether.
        std::fs::remove_dir_all("/var/lib/cni")?;
        netns::remove("a")?;
        cni.run("gc", "forgetful", Path::new("/any"), &[])?
            .worked()?;
        eventually(|| {
            let links = node.ip("-o link show type veth")?;
            ensure!(links.matches(": via").count() == 1, "{links}");
            Ok(())
        })?;
        let records = std::fs::read_dir(node.run_dir().join("endpoints"))?.count();
        ensure!(records == 1, "{records} records");
        node.run("ping", &["-c", "1", "-W", "1", &ip.to_string()])?;
        cni.run("gc", "other", Path::new("/any"), &[])?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn a_container_in_two_networks_is_reached_in_both() {
    built_before();
    in_lab(nodes(2), |lab| {
        let (node, other) = (lab.node("n1")?, lab.node("n2")?);
        let cni = Libcni::on(&node)?;
        let far = other.add_pod("far")?;
        let pod = netns::add("pod")?;
        let mut addresses = Vec::new();
        for (network, ifname) in [("red", "eth0"), ("blue", "net1")] {
            cni.list(&list(network, "1.1.0", &[ours(&node)]))?;
            let env = [("CNI_IFNAME", ifname)];
            let result = cni.run("add", network, &pod, &env)?.worked()?;
            addresses.push(address(&serde_json::from_str(&result)?)?);
            cni.run("check", network, &pod, &env)?.worked()?;
        }
        for ip in &addresses {
            far.ping(*ip, Default::default())?;
        }
        cni.run("del", "red", &pod, &[])?.worked()?;
        far.ping(addresses[1], Default::default())?;
        ensure!(
            far.ping(addresses[0], Default::default()).is_err(),
            "still there"
        );
        let env = [("CNI_IFNAME", "net1")];
        cni.run("check", "blue", &pod, &env)?.worked()?;
        cni.run("del", "blue", &pod, &env)?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn an_address_by_name_is_given_or_clearly_refused() {
    built_before();
    in_lab(nodes(1), |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        cni.list(&list("named", "1.1.0", &[ours(&node)]))?;
        let (first, second) = (netns::add("first")?, netns::add("second")?);
        let wish = r#"{"ips":["10.64.0.40/24"]}"#;
        let result = cni
            .run("add", "named", &first, &[("CAP_ARGS", wish)])?
            .worked()?;
        ensure!(address(&serde_json::from_str(&result)?)?.to_string() == "10.64.0.40");
        let clash = cni.run("add", "named", &second, &[("CNI_ARGS", "IP=10.64.0.40")])?;
        refused(&clash, &["10.64.0.40", "belongs to"])?;
        let outside = cni.run("add", "named", &second, &[("CNI_ARGS", "IP=192.0.2.1")])?;
        refused(&outside, &["192.0.2.1", "10.64.0.0/26"])?;
        let args = [("CNI_ARGS", "IP=10.64.0.41;OTHER=x")];
        let result = cni.run("add", "named", &second, &args)?.worked()?;
        ensure!(address(&serde_json::from_str(&result)?)?.to_string() == "10.64.0.41");
        for pod in [first, second] {
            cni.run("del", "named", &pod, &[])?.worked()?;
        }
        eventually(|| leaks(&node))
    });
}

#[test]
fn behind_another_plugin_it_refuses_and_says_why() {
    built_before();
    in_lab(nodes(1), |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        cni.list(&list("twice", "1.1.0", &[ours(&node), ours(&node)]))?;
        let pod = netns::add("pod")?;
        let run = cni.run("add", "twice", &pod, &[])?;
        refused(&run, &["prevResult", "first plugin"])?;
        // As the specification demands of runtimes after a failed ADD.
        cni.run("del", "twice", &pod, &[])?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn without_the_agent_each_verb_has_its_code() {
    built_before();
    in_lab(nodes(1), |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        cni.list(&list("lonely", "1.1.0", &[ours(&node)]))?;
        let pod = netns::add("pod")?;
        cni.run("status", "lonely", &pod, &[])?.worked()?;
        let result = cni.run("add", "lonely", &pod, &[])?.worked()?;
        node.kill_agent(Signal::SIGKILL)?;
        for (verb, code) in [("status", 50), ("check", 11), ("gc", 11)] {
            let mut config = node.cni_config();
            config["prevResult"] = serde_json::from_str(&result)?;
            let (upper, netns) = (verb.to_uppercase(), pod.display().to_string());
            let env = [
                ("CNI_COMMAND", upper.as_str()),
                ("CNI_CONTAINERID", "c"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", &netns),
            ];
            let direct = node.cni_raw(&env, &serde_json::to_vec(&config)?)?;
            ensure!(direct.error_code() == Some(code), "{verb}: {direct:?}");
        }
        refused(&cni.run("status", "lonely", &pod, &[])?, &["viaduct-agent"])?;
        refused(&cni.run("check", "lonely", &pod, &[])?, &["viaduct-agent"])?;
        node.restart_agent()?;
        cni.run("status", "lonely", &pod, &[])?.worked()?;
        cni.run("check", "lonely", &pod, &[])?.worked()?;
        cni.run("del", "lonely", &pod, &[])?.worked()?;
        eventually(|| leaks(&node))
    });
}

#[test]
fn a_full_node_says_so_before_a_pod_is_sent_to_it() {
    built_before();
    let options = LabOptions {
        pool: Some("10.64.0.0/30".to_owned()),
        controller_args: ["--block-size", "30"].map(str::to_owned).into(),
        ..nodes(1)
    };
    in_lab(options, |lab| {
        let node = lab.node("n1")?;
        let cni = Libcni::on(&node)?;
        cni.list(&list("small", "1.1.0", &[ours(&node)]))?;
        let pods = ["a", "b", "c"].map(netns::add);
        for pod in pods.iter().flatten() {
            cni.run("status", "small", pod, &[])?.worked()?;
            cni.run("add", "small", pod, &[])?.worked()?;
        }
        let any = Path::new("/any");
        refused(
            &cni.run("status", "small", any, &[])?,
            &["no address is free"],
        )?;
        let first = pods.iter().flatten().next().context("no pod")?;
        cni.run("check", "small", first, &[])?.worked()?;
        cni.run("del", "small", first, &[])?.worked()?;
        cni.run("status", "small", any, &[])?.worked()?;
        Ok(())
    });
}
