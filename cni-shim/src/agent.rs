//! Asking the agent: one connection, one request, one reply.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use viaduct_cni::CniError;
use viaduct_cni::frame::{self, FrameError, HEADER};
use viaduct_cni::protocol::Reply;

/// How long the agent may take to do something. Runtimes give up later than this
/// themselves.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no reply.
pub(crate) enum Failure {
    /// Nobody listens, or whoever did went away without an answer.
    Away(String),
    /// The agent took the request and did not answer in time.
    Silent,
    /// The agent, or the way to it, is broken in another manner.
    Broken(String),
}

impl Failure {
    /// The error for the runtime.
    pub(crate) fn into_error(self, socket: &Path) -> CniError {
        let socket = socket.display();
        match self {
            Failure::Away(why) => CniError::new(
                CniError::TRY_AGAIN_LATER,
                format!("viaduct-agent does not answer at {socket}: {why}"),
            )
            .with_details("the agent of this node is not running, or just starting"),
            Failure::Silent => CniError::new(
                CniError::TRY_AGAIN_LATER,
                format!("viaduct-agent at {socket} does not answer in time"),
            ),
            Failure::Broken(why) => CniError::new(
                CniError::PROTOCOL,
                format!("talking to viaduct-agent at {socket} failed: {why}"),
            ),
        }
    }
}

/// Sends `request` with its descriptors and waits for the reply.
pub(crate) fn ask(
    socket: &Path,
    request: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    patience: Duration,
) -> Result<Reply, Failure> {
    let frame = frame::encode(request).map_err(|e| Failure::Broken(e.to_string()))?;
    let mut stream = connect(socket, patience).map_err(failure)?;
    match send(&mut stream, &frame, descriptors) {
        // An agent that would not hear us may have said why.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            receive(&mut stream).map_err(|_| failure(e))
        }
        Err(e) => Err(failure(e)),
        Ok(()) => receive(&mut stream),
    }
}

fn send(stream: &mut UnixStream, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = frame::send_with_descriptors(&*stream, frame, descriptors)?;
    stream.write_all(frame.get(sent..).unwrap_or_default())
}

fn receive(stream: &mut UnixStream) -> Result<Reply, Failure> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).map_err(failure)?;
    let length = frame::payload_length(header).map_err(broken)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).map_err(failure)?;
    frame::decode(&payload).map_err(broken)
}

fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Before connecting: an agent that stands still lets its queue fill up, and
    // connecting waits for a place in it.
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn broken(error: FrameError) -> Failure {
    Failure::Broken(error.to_string())
}

fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::Silent,
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected => Failure::Away(error.to_string()),
        io::ErrorKind::UnexpectedEof => {
            Failure::Away("it closed the connection without an answer".to_owned())
        }
        _ => Failure::Broken(error.to_string()),
    }
}
