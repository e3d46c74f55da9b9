//! Asking this host's agent on its CNI socket, as the plugin does: the agent hears root and
//! its own uid there, and nobody else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use viaduct_cni::frame::{self, HEADER};
use viaduct_cni::protocol::Reply;

/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request and waits for the reply.
pub(super) fn ask(run_dir: &Path, request: &impl Serialize) -> Result<Reply> {
    let path = run_dir.join("cni.sock");
    let told = || format!("the agent at {} does not answer", path.display());
    let mut stream = UnixStream::connect(&path).with_context(told)?;
    stream.set_read_timeout(Some(PATIENCE)).with_context(told)?;
    stream
        .write_all(&frame::encode(request)?)
        .with_context(told)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).with_context(told)?;
    let mut payload = vec![0; frame::payload_length(header)?];
    stream.read_exact(&mut payload).with_context(told)?;
    match frame::decode(&payload)? {
        Reply::Refused(error) => bail!("the agent refuses: {}", error.msg),
        reply => Ok(reply),
    }
}
