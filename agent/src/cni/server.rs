//! The agent's socket: who may ask, what a question looks like, how long a client
//! may take. What the answer is decides the owner of the ledger.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use viaduct_cni::CniError;
use viaduct_cni::frame::{self, FrameError, HEADER};
use viaduct_cni::protocol::{
    AddressRequest, NetworkRequest, NetworkVerb, PROTOCOL, Reply, Request, Verb,
};
use viaduct_model::AttachmentId;

use super::descriptors::Namespace;
use super::gc::{self, Collection};
use super::inquiry::Inquiry;
use super::metrics::{self, CniMetrics};
use super::owner::{Event, Job};
use super::silent::Silent;
use super::status;
use crate::memory::Memory;
use crate::state::{AddressUsage, DataplaneReport, NodeState};

/// How long a client may take to send its question or to fetch its answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);

/// How long an ADD waits for a node that is just becoming ready. The runtime tries
/// again, after a longer pause.
const READY_LIMIT: Duration = Duration::from_secs(1);

/// Questions that are worked on at once; whoever else has asked waits.
const ANSWERS: usize = 200;

/// What every connection needs.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) owner: mpsc::Sender<Event>,
    pub(super) node: watch::Receiver<Option<NodeState>>,
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) report: watch::Receiver<DataplaneReport>,
    pub(super) usage: watch::Receiver<AddressUsage>,
    pub(super) metrics: CniMetrics,
}

/// The socket's file name inside the run directory.
const SOCKET: &str = "cni.sock";

/// Begins to listen. A socket that an earlier agent left is replaced: who holds
/// the run directory's lock owns it.
///
/// # Errors
/// As the file system's.
pub(super) fn listen(run_dir: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = run_dir.join(SOCKET);
    // Bound under another name first, so that nobody connects before the mode is
    // right, and that there is never no socket.
    let fresh = run_dir.join("cni.sock.new");
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, &path)?;
    Ok((listener, path))
}

/// Takes connections until told to stop.
pub(super) async fn serve(
    listener: UnixListener,
    context: Context,
    mut stop: watch::Receiver<bool>,
) {
    let answers = Arc::new(Semaphore::new(ANSWERS));
    let mut silent = Silent::with_descriptors_of_this_process();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                silent.make_room().await;
                listener.accept().await
            } => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (context, answers) = (context.clone(), answers.clone());
                silent.listen_to(hear_and_answer(stream, context, answers));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of the CNI plugin");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Hears one question; once it is whole, its answer is a matter of its own, so that a
/// client that has spoken is silent no more.
async fn hear_and_answer(mut stream: UnixStream, context: Context, answers: Arc<Semaphore>) {
    let begun = Instant::now();
    let asked = tokio::time::timeout(CLIENT_LIMIT, hear(&mut stream)).await;
    let asked = match asked {
        Ok(Err(Deaf::Gone)) => return,
        Ok(Ok(question)) => Ok(question),
        Ok(Err(Deaf::Refused(error))) => Err(error),
        Err(_) => Err(CniError::new(
            CniError::PROTOCOL,
            format!("no whole request came within {CLIENT_LIMIT:?}"),
        )),
    };
    tokio::spawn(async move {
        // The semaphore is never closed.
        let place = answers.acquire().await;
        converse(stream, asked, begun, &context).await;
        drop(place);
    });
}

async fn converse(
    mut stream: UnixStream,
    asked: Result<Question, CniError>,
    begun: Instant,
    context: &Context,
) {
    let (verb, reply) = match asked {
        Ok(Question::Attachment(request, descriptors)) => {
            let verb = metrics::verb(request.verb);
            (Some(verb), answer(*request, descriptors, context).await)
        }
        Ok(Question::Network(request)) => {
            let verb = metrics::network_verb(request.verb);
            (Some(verb), about_network(request, context).await)
        }
        Ok(Question::Address(request)) => (None, about_address(request, context).await),
        Err(error) => (None, Reply::Refused(error)),
    };
    if let Some(verb) = verb {
        context.metrics.answered(verb, &reply, begun.elapsed());
    } else if let Reply::Refused(error) = &reply {
        tracing::warn!(error = %error.msg, "a client of the CNI socket is refused");
    }
    let frame = match frame::encode(&reply) {
        Ok(frame) => frame,
        Err(error) => return tracing::error!(%error, "cannot print a reply"),
    };
    match tokio::time::timeout(CLIENT_LIMIT, stream.write_all(&frame)).await {
        Ok(Ok(())) => {}
        _ => tracing::warn!("a client of the CNI socket did not fetch its answer"),
    }
}

/// What is asked.
enum Question {
    Attachment(Box<Request>, Vec<OwnedFd>),
    Network(NetworkRequest),
    Address(AddressRequest),
}

/// Why there is nothing to answer, or nothing but a refusal.
enum Deaf {
    Gone,
    Refused(CniError),
}

async fn hear(stream: &mut UnixStream) -> Result<Question, Deaf> {
    let refuse = |msg: String| Deaf::Refused(CniError::new(CniError::PROTOCOL, msg));
    let peer = stream
        .peer_cred()
        .map_err(|e| refuse(format!("cannot tell who asks: {e}")))?;
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid() != 0 && peer.uid() != own {
        return Err(refuse(format!(
            "uid {} may not ask: only root and uid {own} may",
            peer.uid()
        )));
    }
    let mut descriptors = Vec::new();
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        let free = header.get_mut(have..).unwrap_or_default();
        match receive(stream, free, &mut descriptors).await {
            // Whoever only tries whether we listen gets no complaint.
            Ok(0) if have == 0 => return Err(Deaf::Gone),
            Ok(0) => return Err(refuse("the request ends within its header".to_owned())),
            Ok(n) => have += n,
            Err(e) => return Err(refuse(e.to_string())),
        }
    }
    let length = frame::payload_length(header).map_err(|e| refuse(e.to_string()))?;
    let mut payload = vec![0; length];
    stream
        .read_exact(&mut payload)
        .await
        .map_err(|e| refuse(format!("the request ends early: {e}")))?;
    let question = match frame::decode::<Request>(&payload) {
        Ok(request) => Question::Attachment(Box::new(request), descriptors),
        Err(e) => match (frame::decode(&payload), frame::decode(&payload)) {
            (Ok(request), _) => Question::Network(request),
            (_, Ok(request)) => Question::Address(request),
            // What the first said: nearly all are about an attachment.
            _ => return Err(refuse(e.to_string())),
        },
    };
    let protocol = match &question {
        Question::Attachment(request, _) => request.protocol,
        Question::Network(request) => request.protocol,
        Question::Address(request) => request.protocol,
    };
    if protocol != PROTOCOL {
        return Err(refuse(format!(
            "the plugin speaks protocol {protocol}, this agent {PROTOCOL}; install the plugin of this release"
        )));
    }
    Ok(question)
}

async fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, FrameError> {
    loop {
        stream.readable().await?;
        let mut refused = None;
        let received = stream.try_io(Interest::READABLE, || {
            frame::receive_with_descriptors(stream, buffer, descriptors).or_else(|e| match e {
                FrameError::Socket(e) => Err(e),
                other => {
                    refused = Some(other);
                    Ok(0)
                }
            })
        });
        match (received, refused) {
            (_, Some(refused)) => return Err(refused),
            (Err(e), None) if e.kind() == io::ErrorKind::WouldBlock => {}
            (received, None) => return Ok(received?),
        }
    }
}

async fn answer(request: Request, descriptors: Vec<OwnedFd>, context: &Context) -> Reply {
    if let Err(invalid) = AttachmentId::new(&request.id.container_id, &request.id.ifname) {
        return Reply::Refused(CniError::new(
            CniError::INVALID_ENVIRONMENT,
            invalid.to_string(),
        ));
    }
    let namespace = match request.verb {
        Verb::Del => None,
        Verb::Add => {
            if let Err(error) = ready(context).await {
                return Reply::Refused(error);
            }
            match Namespace::check(descriptors) {
                Ok(namespace) => Some(namespace),
                Err(error) => return Reply::Refused(error),
            }
        }
        Verb::Check => match Namespace::check(descriptors) {
            Ok(namespace) => Some(namespace),
            Err(error) => return Reply::Refused(error),
        },
    };
    let (answer, answered) = oneshot::channel();
    let job = Job {
        request,
        namespace,
        answer,
    };
    if context.owner.send(Event::Job(job)).await.is_err() {
        return stopping();
    }
    answered.await.unwrap_or_else(|_| stopping())
}

fn stopping() -> Reply {
    Reply::Refused(CniError::new(
        CniError::TRY_AGAIN_LATER,
        "viaduct-agent is stopping",
    ))
}

async fn about_network(request: NetworkRequest, context: &Context) -> Reply {
    match request.verb {
        NetworkVerb::Status => {
            let memory = context
                .memory
                .as_deref()
                .filter(|memory| memory.holds_now());
            let trouble = status::trouble(
                context.node.borrow().as_ref(),
                memory,
                &context.report.borrow(),
                &context.usage.borrow(),
            );
            trouble.map_or(Reply::Fine, Reply::Refused)
        }
        NetworkVerb::Gc => {
            let (begun, removals) = oneshot::channel();
            let collection = Event::Collect(Collection { request, begun });
            if context.owner.send(collection).await.is_err() {
                return stopping();
            }
            match removals.await {
                Ok(removals) => gc::finished(removals).await,
                Err(_) => stopping(),
            }
        }
    }
}

async fn about_address(request: AddressRequest, context: &Context) -> Reply {
    let (answer, answered) = oneshot::channel();
    let inquiry = Event::Inquire(Inquiry {
        address: request.address,
        answer,
    });
    if context.owner.send(inquiry).await.is_err() {
        return stopping();
    }
    match answered.await {
        Ok(state) => Reply::Address(state),
        Err(_) => stopping(),
    }
}

/// Waits a moment for the node to be able to wire pods. While the datastore has not
/// been read, what an earlier agent remembered is good enough, as long as it holds.
async fn ready(context: &Context) -> Result<(), CniError> {
    let remembered = context.memory.as_deref().is_some_and(Memory::holds_now);
    if remembered && context.node.borrow().is_none() {
        return Ok(());
    }
    let (mut node, mut report) = (context.node.clone(), context.report.clone());
    let becoming = async {
        let known = node.wait_for(|n| n.as_ref().is_some_and(|n| n.local.overlay.is_some()));
        known.await.is_ok() && report.wait_for(|r| r.can_wire).await.is_ok()
    };
    if let Ok(true) = tokio::time::timeout(READY_LIMIT, becoming).await {
        return Ok(());
    }
    let why = match &*context.node.borrow() {
        None if context.memory.is_some() => {
            "it has not read the cluster from the datastore yet, and what it remembers of its \
             blocks is too old to go by"
                .to_owned()
        }
        None => "it has not read the cluster from the datastore yet".to_owned(),
        Some(n) if n.local.overlay.is_none() => "it owns no block of pod addresses yet".to_owned(),
        Some(_) => match context.report.borrow().problems.first() {
            Some(problem) => format!("its own network does not stand yet: {problem}"),
            None => "its own network does not stand yet".to_owned(),
        },
    };
    Err(CniError::new(
        CniError::TRY_AGAIN_LATER,
        format!("this node cannot attach pods yet: {why}"),
    ))
}
