//! What a service manager is told: that the programs are ready, and that they stop.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use viaduct_lab::{LabOptions, in_lab};

const SOCKET: &str = "/run/lab-notify.sock";

fn told(socket: &UnixDatagram, what: &str) -> Result<()> {
    let mut message = [0; 4096];
    let length = socket
        .recv(&mut message)
        .with_context(|| format!("waiting for {what}"))?;
    let message = String::from_utf8_lossy(&message[..length]);
    ensure!(
        message.lines().any(|line| line == what),
        "told {message:?}, not {what}"
    );
    Ok(())
}

#[test]
fn a_service_manager_is_told_when_they_are_ready_and_when_they_stop() {
    let options = LabOptions {
        nodes: 0,
        pods: 0,
        controller: false,
        env: vec![("NOTIFY_SOCKET".to_owned(), SOCKET.to_owned())],
        ..LabOptions::default()
    };
    in_lab(options, |lab| {
        let socket = UnixDatagram::bind(SOCKET)?;
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o777))?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;

        lab.start_controller()?;
        told(&socket, "READY=1")?;
        let node = lab.new_node()?;
        node.start_agent()?;
        told(&socket, "READY=1")?;
        let metrics = node.metrics()?;
        ensure!(
            metrics.contains("viaduct_ready 1"),
            "told before the kernel was verified:\n{metrics}"
        );
        node.agent().stop()?;
        told(&socket, "STOPPING=1")?;
        lab.controller().stop()?;
        told(&socket, "STOPPING=1")
    });
}
