//! Every pod reaches every pod, and the store reads as documented.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use viaduct_e2e::{Raw, eventually, leaks};
use viaduct_lab::{Backend, Datastore, Lab, LabOptions, Matrix, Signal, command, in_lab};
use viaduct_model::Kind;

fn options(datastore: Datastore) -> LabOptions {
    LabOptions {
        nodes: 3,
        pods: 2,
        datastore,
        ..LabOptions::default()
    }
}

fn everybody_reaches_everybody(lab: &Lab) -> Result<()> {
    let matrix = Matrix::run(lab)?;
    ensure!(
        matrix.pods.len() == 30,
        "{} pairs of pods",
        matrix.pods.len()
    );
    ensure!(
        matrix.nodes.len() == 18,
        "{} from nodes",
        matrix.nodes.len()
    );
    let failures = matrix.failures();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.nodes().iter().try_for_each(|node| leaks(node))
}

#[test]
fn every_pod_reaches_every_pod_on_sqlite() {
    in_lab(options(Datastore::Sqlite), |lab| {
        everybody_reaches_everybody(lab)?;
        let raw = Raw::open(lab)?;
        let blocks = raw.blocks_by_node()?;
        ensure!(
            blocks.len() == 3 && blocks.values().all(|blocks| blocks.len() == 1),
            "{blocks:?}"
        );
        Ok(())
    });
}

#[test]
fn every_pod_reaches_every_pod_on_etcd_whose_keys_a_person_can_follow() {
    in_lab(options(Datastore::Etcd), |lab| {
        everybody_reaches_everybody(lab)?;
        let mut etcdctl = command::command("etcdctl");
        etcdctl
            .envs(lab.environment())
            .args(["get", "--prefix", "/viaduct/"]);
        let text = command::output_of(&mut etcdctl)?;
        let lines: Vec<&str> = text.lines().collect();
        let mut seen = BTreeSet::new();
        for pair in lines.chunks(2) {
            let [key, value] = pair else {
                anyhow::bail!("a record of more than one line: {text}");
            };
            let value: Value = serde_json::from_str(value)?;
            let place = key.strip_prefix("/viaduct/v1/").unwrap_or_default();
            let backend = lab.options().backend;
            check_record(backend, place, &value)
                .map_err(|error| error.context(format!("{key} {value}")))?;
            seen.insert(place.to_owned());
        }
        let wanted = [
            "blocks/10.64.0.0-26",
            "blocks/10.64.0.128-26",
            "blocks/10.64.0.64-26",
            "claims/n1",
            "claims/n2",
            "claims/n3",
            "election/controller",
            "nodes/n1",
            "nodes/n2",
            "nodes/n3",
            "pools/default",
        ];
        ensure!(
            seen.iter().map(String::as_str).eq(wanted),
            "other keys than documented: {seen:?}"
        );
        what_ticks_stays_in_claims(lab)
    });
}

/// Checks one record against the documented format.
fn check_record(backend: Backend, place: &str, value: &Value) -> Result<()> {
    let (kind, name) = place.split_once('/').unwrap_or_default();
    let fields: Vec<&str> = value
        .as_object()
        .map(|fields| fields.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let has = |wanted: &[&str]| {
        let missing: Vec<_> = wanted.iter().filter(|w| !fields.contains(w)).collect();
        let strange: Vec<_> = fields.iter().filter(|f| !wanted.contains(f)).collect();
        ensure!(
            missing.is_empty() && strange.is_empty(),
            "missing {missing:?}, strange {strange:?}"
        );
        Ok(())
    };
    match kind {
        "pools" => {
            has(&["cidr", "blockSize", "natOutgoing", "disabled", "status"])?;
            ensure!(value["cidr"] == "10.64.0.0/16" && value["blockSize"] == 26);
            ensure!(value["status"]["blocksTotal"] == 1024);
        }
        "blocks" => {
            has(&["cidr", "pool", "node", "generation", "state", "trustMs"])?;
            let cidr = value["cidr"].as_str().unwrap_or_default();
            ensure!(cidr.replace('/', "-") == name, "the name is not the CIDR");
            ensure!(value["pool"] == "default" && value["state"] == "active");
        }
        "nodes" => {
            has(&[
                "incarnation",
                "underlay",
                "underlayNetworks",
                "backend",
                "overlay",
                "mtu",
            ])?;
            let number: u8 = name.trim_start_matches('n').parse()?;
            ensure!(value["underlay"] == json!({"v4": format!("172.29.0.{}", 10 + number)}));
            ensure!(value["underlayNetworks"] == json!(["172.29.0.0/24"]));
            ensure!(value["backend"]["type"] == backend.name());
            if backend == Backend::Vxlan {
                let carrier = &value["backend"];
                ensure!(carrier["vni"] == 1 && carrier["port"] == 8472);
                ensure!(carrier["vtepMac"].is_string());
            }
            ensure!(value["mtu"] == 1500 - backend.overhead());
            ensure!(value["overlay"]["v4"].is_string());
        }
        "claims" => {
            has(&[
                "incarnation",
                "host",
                "agentVersion",
                "wants",
                "blocks",
                "holds",
                "conditions",
            ])?;
            ensure!(value["wants"] == json!({"v4": 1, "v6": 0}));
            for condition in value["conditions"].as_array().into_iter().flatten() {
                ensure!(condition["status"] == "True", "{condition}");
                ensure!(condition["lastTransitionTime"].is_string(), "{condition}");
            }
        }
        "election" => ensure!(value["identity"].is_string()),
        _ => anyhow::bail!("nothing that is documented"),
    }
    Ok(())
}

/// What all agents watch does not change while pods come and go.
fn what_ticks_stays_in_claims(lab: &Lab) -> Result<()> {
    let raw = Raw::open(lab)?;
    let watched = || -> Result<_> {
        let mut pools = raw.all(Kind::Pool)?;
        // How many blocks are free is written now and then, whatever pods do.
        for pool in pools.values_mut() {
            pool["status"] = Value::Null;
        }
        Ok([pools, raw.all(Kind::Block)?, raw.all(Kind::Node)?])
    };
    let before = watched()?;
    let node = lab.node("n1")?;
    let pod = node.add_pod("extra")?;
    node.del_pod(&pod)?;
    eventually(|| leaks(&node))?;
    ensure!(before == watched()?, "a pod changed {before:?}");
    Ok(())
}

#[test]
fn a_network_that_does_not_carry_is_told_from_one_that_does() {
    in_lab(LabOptions::default(), |lab| {
        let node = lab.node("n1")?;
        node.kill_agent(Signal::SIGKILL)?;
        let way = lab.options().way();
        node.ip(&format!("route flush proto 87 dev {way}"))?;
        node.ip("route del default")?;
        let matrix = Matrix::run(lab)?;
        let broken = matrix
            .pods
            .iter()
            .all(|pair| pair.ping.is_err() && pair.tcp.is_err());
        ensure!(broken, "{:?}", matrix.pods);
        ensure!(matrix.wire.is_err() && matrix.capabilities.is_err());
        Ok(())
    });
}
