//! What a run of the plugin's binary takes: the call, an agent that answers as it is told,
//! a pod's namespace.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use serde_json::{Value, json};
use viaduct_cni::frame;
use viaduct_cni::protocol::{Reply, Request};

/// The environment and standard input of one run.
pub(crate) struct Call<'a> {
    pub(crate) verb: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) input: Vec<u8>,
}

pub(crate) fn config(run: &Path) -> Vec<u8> {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "viaduct", "socket": run.join("cni.sock")})
        .to_string()
        .into_bytes()
}

pub(crate) fn call(call: Call<'_>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .env_clear()
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", call.netns)
        .env("CNI_IFNAME", call.ifname)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may stop reading early, which is its right.
    let _ = child.stdin.take().unwrap().write_all(&call.input);
    child.wait_with_output().unwrap()
}

pub(crate) fn printed(output: &Output) -> Value {
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// A run that must fail: exit code 1 and an error with this code.
pub(crate) fn refused(output: &Output, code: u32) -> String {
    let error = printed(output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error["code"], code, "{error}");
    assert!(error["cniVersion"].is_string());
    error["msg"].as_str().unwrap().to_owned()
}

/// Answers `replies.len()` connections and returns what was asked.
pub(crate) fn agent(
    run: &Path,
    replies: Vec<Option<Reply>>,
) -> thread::JoinHandle<Vec<(Request, usize)>> {
    let listener = UnixListener::bind(run.join("cni.sock")).unwrap();
    thread::spawn(move || {
        replies
            .into_iter()
            .map(|reply| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut header = [0; frame::HEADER];
                let mut descriptors = Vec::new();
                let n = frame::receive_with_descriptors(&stream, &mut header, &mut descriptors)
                    .unwrap();
                assert_eq!(n, header.len());
                let mut payload = vec![0; frame::payload_length(header).unwrap()];
                stream.read_exact(&mut payload).unwrap();
                if let Some(reply) = reply {
                    stream.write_all(&frame::encode(&reply).unwrap()).unwrap();
                }
                (frame::decode(&payload).unwrap(), descriptors.len())
            })
            .collect()
    })
}

/// A process in a network namespace of its own, killed with the test.
pub(crate) struct Pod(Child);

impl Pod {
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo up; exec sleep 60"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.take().unwrap().read_exact(&mut up).unwrap();
        Self(child)
    }

    pub(crate) fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs this one test again as root of a user namespace, where namespaces can
/// be made and entered by anybody. True in that inner run.
pub(crate) fn inside_namespaces(test: &str) -> bool {
    const MARK: &str = "VIADUCT_TEST_INSIDE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["-Urnm", "--"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
    false
}
