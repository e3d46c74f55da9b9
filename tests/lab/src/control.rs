//! The socket between the worker inside the lab and the outer process.
//!
//! The worker asks, one line each, and the outer process answers: it dials an
//! address in its own network namespace and passes the connected descriptor
//! (a socket stays in the namespace that it was opened in), or it takes note that
//! the lab is ready. The socket's end is also how init knows that the outer
//! process is gone, see [`isolate`](crate::isolate).

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

const ANSWER_MAX: usize = 1024;

/// The worker's end of the control socket.
#[derive(Debug)]
pub struct Control {
    socket: Mutex<UnixStream>,
}

impl Control {
    /// Takes the socket from standard input, where the outer process put it.
    ///
    /// # Errors
    /// When standard input is closed.
    pub(crate) fn from_stdin() -> Result<Self> {
        let fd = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("the control socket")?;
        Ok(Self {
            socket: Mutex::new(UnixStream::from(fd)),
        })
    }

    /// The control of a lab that nobody outside answers: whatever needs somebody
    /// there fails.
    ///
    /// # Errors
    /// When no socket can be made.
    pub(crate) fn of_nobody() -> Result<Self> {
        let (socket, _) = UnixStream::pair().context("a socket pair")?;
        Ok(Self {
            socket: Mutex::new(socket),
        })
    }

    /// Connects to `address` (`host:port`) from where the lab was started.
    ///
    /// # Errors
    /// What the connecting process said.
    pub fn connect(&self, address: &str) -> Result<TcpStream> {
        let fd = self
            .ask(&format!("connect {address}"))?
            .context("the answer came without a connection")?;
        Ok(TcpStream::from(fd))
    }

    /// Reports that the lab is ready; returns once the outer process took note.
    ///
    /// # Errors
    /// What the outer process failed at.
    pub fn ready(&self, report: &str) -> Result<()> {
        self.ask(&format!("ready {report}")).map(drop)
    }

    fn ask(&self, question: &str) -> Result<Option<OwnedFd>> {
        let mut socket = self
            .socket
            .lock()
            .map_err(|_| anyhow::anyhow!("the control socket failed before"))?;
        writeln!(socket, "{question}").context("the process that started the lab is gone")?;
        let mut text = [0; ANSWER_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .context("the process that started the lab does not answer")?;
        let mut passed = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                passed = fds.into_iter().next();
            }
        }
        let answer = String::from_utf8_lossy(&text[..got.bytes]);
        match answer.trim_end().split_once(' ') {
            Some(("ok", _)) => Ok(passed),
            Some(("error", why)) => bail!("{why}"),
            _ => bail!("the process that started the lab is gone"),
        }
    }
}

/// Answers the worker until it is gone. Runs in the outer process.
pub(crate) fn serve(socket: &UnixStream, ready: &dyn Fn(&str) -> Result<()>) {
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { return };
        let outcome = match line.split_once(' ') {
            Some(("connect", address)) => TcpStream::connect(address)
                .map(|stream| Some(OwnedFd::from(stream)))
                .with_context(|| address.to_owned()),
            Some(("ready", report)) => ready(report).map(|()| None),
            _ => Err(anyhow::anyhow!("an unknown request")),
        };
        if answer(socket, outcome).is_err() {
            return;
        }
    }
}

fn answer(socket: &UnixStream, outcome: Result<Option<OwnedFd>>) -> Result<()> {
    let (text, fd) = match outcome {
        Ok(fd) => ("ok .".to_owned(), fd),
        Err(error) => {
            let line = format!("{error:#}").replace('\n', " ");
            (format!("error {line}"), None)
        }
    };
    let text: String = text.chars().take(ANSWER_MAX / 4).collect();
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(
        socket,
        &[IoSlice::new(text.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .context("answering the lab")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_errors_and_reports_cross_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            serve(&theirs, &|report| {
                anyhow::ensure!(report == "good", "not {report}");
                Ok(())
            });
        });
        let control = Control {
            socket: Mutex::new(ours),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = control.connect(&address.to_string()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        drop(listener);
        let refused = control.connect(&address.to_string()).unwrap_err();
        assert!(refused.to_string().contains(&address.to_string()));
        control.ready("good").unwrap();
        assert_eq!(control.ready("bad").unwrap_err().to_string(), "not bad");
        drop(control);
        server.join().unwrap();
    }
}
