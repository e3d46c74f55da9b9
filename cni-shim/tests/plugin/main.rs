//! The plugin's binary as a runtime runs it: environment, standard input, exit
//! code, standard output. The agent is a thread of the test; namespaces are made
//! by the test, which for that runs itself inside namespaces of its own.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod harness;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use harness::{Call, Pod, agent, call, config, inside_namespaces, printed, refused};
use serde_json::{Value, json};
use viaduct_cni::frame;
use viaduct_cni::protocol::{NetworkRequest, NetworkVerb, Reply, Verb, Wired};
use viaduct_cni::spool;

#[test]
fn bad_input_gets_the_specifications_codes() {
    let run = tempfile::tempdir().unwrap();
    let add = |input: &[u8]| {
        call(Call {
            verb: "ADD",
            netns: "/absent/netns",
            ifname: "eth0",
            input: input.to_vec(),
        })
    };
    let named = |verb, netns, ifname| {
        call(Call {
            verb,
            netns,
            ifname,
            input: config(run.path()),
        })
    };
    refused(&add(b""), 6);
    refused(&add(&vec![b'['; 10 << 20]), 6);
    refused(&add(b"\xff\xfe"), 6);
    refused(&add(br#"{"cniVersion":"0.1.0","name":"n"}"#), 1);
    refused(&add(br#"{"cniVersion":"1.0.0"}"#), 7);
    assert!(refused(&add(&config(run.path())), 4).contains("CNI_NETNS"));
    let first = br#"{"cniVersion":"1.0.0","name":"n","prevResult":{}}"#;
    assert!(refused(&add(first), 7).contains("prevResult"));

    let own = named("ADD", "/proc/self/ns/net", "eth0");
    assert!(refused(&own, 4).contains("host"));
    let no_net = named("ADD", "/proc/self/status", "eth0");
    assert!(refused(&no_net, 4).contains("not a namespace"));
    let long = named("ADD", "/x", "a-name-of-16-byt");
    assert!(refused(&long, 4).contains("CNI_IFNAME"));
    let lower = named("add", "", "eth0");
    assert!(refused(&lower, 4).contains("CNI_COMMAND"));
    assert_eq!(printed(&lower)["cniVersion"], "1.0.0");
    let wish = json!({"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"ips": ["nowhere"]}});
    assert!(refused(&add(wish.to_string().as_bytes()), 7).contains("nowhere"));
}

/// A verb with a configuration of that version; more fields may be given.
fn network(run: &Path, verb: &str, version: &str, more: &Value) -> Output {
    let mut config = json!({"cniVersion": version, "name": "net", "type": "viaduct",
        "socket": run.join("cni.sock")});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    call(Call {
        verb,
        netns: "/proc/self/ns/net",
        ifname: "eth0",
        input: config.to_string().into_bytes(),
    })
}

#[test]
fn without_an_agent_each_verb_says_so_in_its_own_code() {
    let run = tempfile::tempdir().unwrap();
    let none = json!({});
    let why = refused(&network(run.path(), "STATUS", "1.1.0", &none), 50);
    assert!(why.contains("viaduct-agent"), "{why}");
    refused(&network(run.path(), "GC", "1.1.0", &none), 11);
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let why = refused(&network(run.path(), verb, version, &none), 1);
        assert!(why.contains(verb) && why.contains(version), "{why}");
    }
    let why = refused(&network(run.path(), "CHECK", "1.1.0", &none), 7);
    assert!(why.contains("prevResult"), "{why}");
    let bad = json!({"cni.dev/valid-attachments": {}});
    refused(&network(run.path(), "GC", "1.1.0", &bad), 7);
}

#[test]
fn gc_and_status_are_asked_of_the_agent() {
    let run = tempfile::tempdir().unwrap();
    let short = viaduct_cni::CniError::new(51, "half of it is down");
    let odd = viaduct_cni::CniError::new(101, "what is STATUS?");
    let answers = [
        Reply::Fine,
        Reply::Fine,
        Reply::Refused(short),
        Reply::Refused(odd),
    ];
    let listener = UnixListener::bind(run.path().join("cni.sock")).unwrap();
    let agent = thread::spawn(move || {
        answers.map(|reply| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; frame::HEADER];
            stream.read_exact(&mut header).unwrap();
            let mut payload = vec![0; frame::payload_length(header).unwrap()];
            stream.read_exact(&mut payload).unwrap();
            stream.write_all(&frame::encode(&reply).unwrap()).unwrap();
            frame::decode::<NetworkRequest>(&payload).unwrap()
        })
    });
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    let output = network(run.path(), "GC", "1.1.0", &valid);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    let none = json!({});
    let status = || network(run.path(), "STATUS", "1.1.0", &none);
    let output = status();
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    assert_eq!(refused(&status(), 51), "half of it is down");
    // An older agent does not know the verb: no pod can be attached for sure.
    refused(&status(), 50);
    let asked = agent.join().unwrap();
    assert_eq!(asked[0].verb, NetworkVerb::Gc);
    let link = viaduct_model::AttachmentId::new("c1", "eth0")
        .unwrap()
        .link_name();
    assert_eq!(asked[0].keep, [link]);
    assert!(
        asked[1..]
            .iter()
            .all(|asked| asked.verb == NetworkVerb::Status)
    );
}

#[test]
fn version_needs_nothing_else() {
    let output = call(Call {
        verb: "VERSION",
        netns: "",
        ifname: "",
        input: br#"{"cniVersion":"0.4.0"}"#.to_vec(),
    });
    assert!(output.status.success());
    let version = printed(&output);
    assert_eq!(version["cniVersion"], "0.4.0");
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 4);
}

#[test]
fn a_person_gets_a_hint() {
    let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("CNI_COMMAND"));
}

fn del(run: &Path) -> Output {
    call(Call {
        verb: "DEL",
        netns: "",
        ifname: "eth0",
        input: config(run),
    })
}

#[test]
fn del_is_asked_of_the_agent() {
    let run = tempfile::tempdir().unwrap();
    let agent = agent(run.path(), vec![Some(Reply::Gone)]);
    let output = del(run.path());
    assert!(output.status.success() && output.stdout.is_empty());
    let asked = agent.join().unwrap();
    assert_eq!(asked[0].0.verb, Verb::Del);
    assert_eq!(asked[0].1, 0);
}

#[test]
fn del_is_spooled_while_the_agent_is_away() {
    let run = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        assert!(del(run.path()).status.success());
    }
    let entries = spool::read(run.path()).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].request.as_ref().unwrap().verb, Verb::Del);
}

#[test]
fn del_of_an_agent_that_dies_over_it_is_spooled() {
    let run = tempfile::tempdir().unwrap();
    let agent = agent(run.path(), vec![None]);
    assert!(del(run.path()).status.success());
    agent.join().unwrap();
    assert_eq!(spool::read(run.path()).unwrap().len(), 1);
}

#[test]
fn del_that_meets_an_agent_just_started_leaves_no_spool() {
    let run = tempfile::tempdir().unwrap();
    let agent = agent(run.path(), vec![None, Some(Reply::Gone)]);
    assert!(del(run.path()).status.success());
    assert_eq!(agent.join().unwrap().len(), 2);
    assert!(spool::read(run.path()).unwrap().is_empty());
}

#[test]
fn del_that_cannot_be_spooled_is_no_success() {
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join(spool::DIRECTORY), "in the way").unwrap();
    refused(&del(run.path()), 5);
}

/// Runs the plugin so that it dies at this point.
fn killed(point: &str, verb: &str, netns: &str, run: &Path) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .env_clear()
        .env(viaduct_cni::fault::VARIABLE, point)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&config(run)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{point}: {output:?}");
    assert!(
        output.stdout.is_empty(),
        "{point}: a half answer: {output:?}"
    );
}

#[test]
fn del_killed_at_any_step_is_spooled_whole_or_not_at_all_and_can_be_repeated() {
    for (point, spooled) in [
        ("plugin.away", 0),
        ("spool.written", 0),
        ("spool.renamed", 1),
    ] {
        let run = tempfile::tempdir().unwrap();
        killed(point, "DEL", "", run.path());
        let entries = spool::read(run.path()).unwrap();
        assert_eq!(entries.len(), spooled, "{point}");
        assert!(entries.iter().all(|entry| entry.request.is_ok()), "{point}");
        assert!(del(run.path()).status.success(), "{point}");
        let entries = spool::read(run.path()).unwrap();
        assert_eq!(entries.len(), 1, "{point}");
        assert!(entries[0].request.is_ok(), "{point}");
    }
}

#[test]
fn del_killed_after_the_agents_answer_spools_nothing_and_can_be_repeated() {
    let run = tempfile::tempdir().unwrap();
    let agent = agent(run.path(), vec![Some(Reply::Gone), Some(Reply::Gone)]);
    killed("plugin.deleted", "DEL", "", run.path());
    assert!(del(run.path()).status.success());
    assert_eq!(agent.join().unwrap().len(), 2);
    assert!(spool::read(run.path()).unwrap().is_empty());
}

#[test]
fn add_killed_at_any_step_prints_no_half_answer_and_can_be_repeated() {
    if !inside_namespaces("add_killed_at_any_step_prints_no_half_answer_and_can_be_repeated") {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let pod = Pod::new();
    let wired = Wired {
        host_link: "via0".into(),
        host_mac: "ee:76:69:61:00:01".parse().unwrap(),
        pod_mac: "02:00:5e:00:53:01".parse().unwrap(),
        mtu: 1450,
        addresses: vec!["10.1.2.3".parse().unwrap()],
        gateways: vec!["169.254.1.1".parse().unwrap()],
        secondary: false,
    };
    let replies = vec![Some(Reply::Wired(wired.clone())), Some(Reply::Wired(wired))];
    let agent = agent(run.path(), replies);
    // Before the agent was asked, and after it has answered.
    killed("plugin.opened", "ADD", &pod.netns(), run.path());
    killed("plugin.added", "ADD", &pod.netns(), run.path());
    let output = call(Call {
        verb: "ADD",
        netns: &pod.netns(),
        ifname: "eth0",
        input: config(run.path()),
    });
    assert_eq!(printed(&output)["ips"][0]["address"], "10.1.2.3/32");
    assert_eq!(agent.join().unwrap().len(), 2);
}

#[test]
fn del_on_a_full_disk_is_an_error_and_leaves_nothing_half() {
    if !inside_namespaces("del_on_a_full_disk_is_an_error_and_leaves_nothing_half") {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let path = run.path().to_str().unwrap();
    // Room for the directory and one file of a page, or for no file at all.
    for (options, what) in [("size=4k", "bytes"), ("size=64k,nr_inodes=3", "inodes")] {
        let mount = |args: &[&str]| {
            let done = Command::new("mount").args(args).arg(path).status();
            assert!(done.unwrap().success());
        };
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"]);
        let ballast = run.path().join("ballast");
        std::fs::write(&ballast, vec![0; 4096]).unwrap();
        let output = del(run.path());
        let why = refused(&output, 5);
        assert!(
            why.contains("No space left") && why.contains("c1/eth0"),
            "{what}: {why}"
        );
        let spool = run.path().join(spool::DIRECTORY);
        let left = std::fs::read_dir(&spool).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what}: something half is left");
        // As soon as there is room it works.
        std::fs::remove_file(&ballast).unwrap();
        assert!(del(run.path()).status.success(), "{what}");
        assert_eq!(spool::read(run.path()).unwrap().len(), 1);
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    }
}

#[test]
fn del_before_any_agent_ever_ran_succeeds_and_leaves_nothing() {
    let run = tempfile::tempdir().unwrap();
    let never = run.path().join("never");
    assert!(del(&never).status.success());
    assert!(!never.exists());
}

#[test]
fn add_passes_descriptors_and_prints_the_result() {
    if !inside_namespaces("add_passes_descriptors_and_prints_the_result") {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let pod = Pod::new();
    let netns = pod.netns();
    let add = || {
        call(Call {
            verb: "ADD",
            netns: &netns,
            ifname: "eth0",
            input: config(run.path()),
        })
    };
    assert!(refused(&add(), 11).contains("viaduct-agent"));

    let wired = Wired {
        host_link: "via0".into(),
        host_mac: "ee:76:69:61:00:01".parse().unwrap(),
        pod_mac: "02:00:5e:00:53:01".parse().unwrap(),
        mtu: 1450,
        addresses: vec!["10.1.2.3".parse().unwrap()],
        gateways: vec!["169.254.1.1".parse().unwrap()],
        secondary: false,
    };
    let busy = viaduct_cni::CniError::new(11, "not yet");
    let agent = agent(
        run.path(),
        vec![Some(Reply::Wired(wired)), Some(Reply::Refused(busy)), None],
    );
    let output = add();
    let result = printed(&output);
    assert!(output.status.success());
    assert_eq!(result["ips"][0]["address"], "10.1.2.3/32");
    assert_eq!(result["interfaces"][1]["sandbox"], netns);
    assert_eq!(refused(&add(), 11), "not yet");
    refused(&add(), 11);
    let asked = agent.join().unwrap();
    assert!(asked.iter().all(|(r, n)| r.verb == Verb::Add && *n == 2));
    assert_eq!(asked[0].0.netns, netns);
}
