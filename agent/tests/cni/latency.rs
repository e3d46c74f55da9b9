//! Not a test but a look: how long ADD and DEL take, asked of the socket, and through
//! the plugin itself when `VIADUCT_PLUGIN` names its binary.
//! `cargo test -p viaduct-agent --test cni -- --ignored --nocapture`

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use viaduct_cni::protocol::Verb;

use crate::harness::*;

const PODS: usize = 100;

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| -> Duration { times[(times.len() - 1) * share / 100] };
    println!(
        "{what}: p50 {:?} p99 {:?} max {:?}",
        at(50),
        at(99),
        at(100)
    );
}

#[test]
#[ignore = "prints timings, asserts nothing"]
fn of_the_socket() {
    if !inside("latency::of_the_socket") {
        return;
    }
    block_on(async {
        let node = Node::new().await;
        let pods: Vec<Pod> = (0..PODS).map(|i| Pod::new(&format!("c{i}"))).collect();
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for pod in &pods {
            let descriptors = pod.descriptors();
            let request = request(Verb::Add, pod.name(), &pod.netns());
            let begun = Instant::now();
            let reply = node.ask(request, descriptors).await;
            adds.push(begun.elapsed());
            wired(reply);
        }
        for pod in &pods {
            let begun = Instant::now();
            node.del(pod.name()).await;
            dels.push(begun.elapsed());
        }
        node.is_clean().await;
        print("ADD", adds);
        print("DEL", dels);
    });
}

#[test]
#[ignore = "prints timings, needs VIADUCT_PLUGIN"]
fn of_the_plugin() {
    if !inside("latency::of_the_plugin") {
        return;
    }
    let Some(plugin) = std::env::var_os("VIADUCT_PLUGIN") else {
        return println!("VIADUCT_PLUGIN is not set");
    };
    block_on(async {
        let node = Node::new().await;
        let socket = node.run_dir.join("cni.sock");
        let config =
            format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"viaduct","socket":{socket:?}}}"#);
        let call = |verb: &str, pod: &Pod| {
            let begun = Instant::now();
            let mut child = Command::new(&plugin)
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", pod.name())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", pod.netns())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(config.as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            begun.elapsed()
        };
        let pods: Vec<Pod> = (0..PODS).map(|i| Pod::new(&format!("c{i}"))).collect();
        tokio::task::block_in_place(|| {
            print("plugin ADD", pods.iter().map(|p| call("ADD", p)).collect());
            print("plugin DEL", pods.iter().map(|p| call("DEL", p)).collect());
        });
        node.is_clean().await;
    });
}
