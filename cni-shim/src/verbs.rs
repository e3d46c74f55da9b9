//! The verbs as the plugin does them.

use std::os::fd::AsFd;
use std::time::Duration;

use viaduct_cni::config::NetConf;
use viaduct_cni::invocation::Attachment;
use viaduct_cni::previous::Previous;
use viaduct_cni::protocol::{NetworkRequest, NetworkVerb, PROTOCOL, Reply, Request, Verb};
use viaduct_cni::version::CniVersion;
use viaduct_cni::wishes::Wishes;
use viaduct_cni::{CniError, fault, result, spool};

use crate::agent::{self, Failure, PATIENCE};
use crate::netns;

/// How long STATUS waits for an agent: it is asked every few seconds.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Attaches, and prints the result.
pub(crate) fn add(conf: &NetConf, attachment: Attachment) -> Result<String, CniError> {
    if conf.previous_result.is_some() {
        return Err(CniError::new(
            CniError::INVALID_CONFIG,
            "network configuration: field \"prevResult\" is present, but viaduct must be the \
             first plugin of its list",
        )
        .with_details(
            "viaduct makes the pod's interface; put the plugins that change it after it",
        ));
    }
    let wishes = Wishes::read(&conf.object, &attachment.args)?;
    let pod = netns::open(&attachment.netns)?;
    let request = Request {
        wishes,
        ..request(Verb::Add, conf, attachment)
    };
    let descriptors = [pod.namespace.as_fd(), pod.rtnetlink.as_fd()];
    fault::point("plugin.opened");
    let reply = agent::ask(&conf.socket, &request, &descriptors, PATIENCE)
        .map_err(|failure| failure.into_error(&conf.socket))?;
    fault::point("plugin.added");
    match reply {
        // Of a release that knows no wishes: no other address may pass for the one.
        Reply::Wired(wired) if !request.wishes.are_met_by(&wired) => Err(unexpected()),
        Reply::Wired(wired) => result::add_result(
            conf.version,
            &wired,
            &request.id.ifname,
            &request.netns,
            conf.dns.as_ref(),
        )
        .map_err(|e| {
            CniError::new(
                CniError::IO_FAILURE,
                format!("cannot print the result: {e}"),
            )
        }),
        Reply::Refused(error) => Err(error),
        Reply::Gone | Reply::Fine | Reply::Address(_) => Err(unexpected()),
    }
}

/// Compares an attachment with what it should be.
pub(crate) fn check(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    conf.allow("CHECK", CniVersion::V0_4_0)?;
    let Some(result) = &conf.previous_result else {
        return Err(CniError::new(
            CniError::INVALID_CONFIG,
            "network configuration: field \"prevResult\" is missing, which CHECK compares with",
        ));
    };
    let previous = Previous::of(result, &attachment.id, &attachment.netns)?;
    let pod = netns::open(&attachment.netns)?;
    let request = Request {
        previous: Some(previous),
        ..request(Verb::Check, conf, attachment)
    };
    let descriptors = [pod.namespace.as_fd(), pod.rtnetlink.as_fd()];
    fine(
        conf,
        agent::ask(&conf.socket, &request, &descriptors, PATIENCE),
    )
}

/// Has everything removed that belongs to attachments that are no more.
pub(crate) fn gc(conf: &NetConf) -> Result<(), CniError> {
    conf.allow("GC", CniVersion::V1_1_0)?;
    let request = NetworkRequest {
        protocol: PROTOCOL,
        verb: NetworkVerb::Gc,
        network: conf.name.clone(),
        keep: conf.valid_attachments()?,
    };
    fine(conf, agent::ask(&conf.socket, &request, &[], PATIENCE))
}

/// Says whether pods can be attached.
pub(crate) fn status(conf: &NetConf) -> Result<(), CniError> {
    conf.allow("STATUS", CniVersion::V1_1_0)?;
    let request = NetworkRequest {
        protocol: PROTOCOL,
        verb: NetworkVerb::Status,
        network: conf.name.clone(),
        keep: Vec::new(),
    };
    let answer = agent::ask(&conf.socket, &request, &[], STATUS_PATIENCE);
    // Whatever the matter is with the agent, it attaches nobody.
    fine(conf, answer).map_err(|error| match error.code {
        CniError::NOT_AVAILABLE | CniError::LIMITED_CONNECTIVITY => error,
        _ => CniError {
            code: CniError::NOT_AVAILABLE,
            ..error
        },
    })
}

fn fine(conf: &NetConf, answer: Result<Reply, Failure>) -> Result<(), CniError> {
    match answer.map_err(|failure| failure.into_error(&conf.socket))? {
        Reply::Fine => Ok(()),
        Reply::Refused(error) => Err(error),
        Reply::Wired(_) | Reply::Gone | Reply::Address(_) => Err(unexpected()),
    }
}

/// Detaches, or spools that when the agent is away.
pub(crate) fn del(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    let request = request(Verb::Del, conf, attachment);
    match agent::ask(&conf.socket, &request, &[], PATIENCE) {
        Err(Failure::Away(_)) => {}
        answer => {
            fault::point("plugin.deleted");
            return finish_del(conf, answer);
        }
    }
    fault::point("plugin.away");
    let spooled = spool::write(&conf.run_dir, &request).map_err(|e| {
        CniError::new(
            CniError::IO_FAILURE,
            format!(
                "viaduct-agent is away, and DEL of {} cannot be spooled in {}: {e}",
                request.id,
                conf.run_dir.join(spool::DIRECTORY).display()
            ),
        )
    })?;
    if spooled == spool::Spooled::NothingEverAttached {
        return Ok(());
    }
    // An agent listens first and empties the spool then. One that started in
    // between may have missed our file, and is there now.
    match agent::ask(&conf.socket, &request, &[], PATIENCE) {
        Err(Failure::Away(_)) => Ok(()),
        answer => {
            let done = finish_del(conf, answer);
            if done.is_ok() {
                // The agent took it out already; left over it would do no harm
                // either, since an ADD of the same attachment removes it.
                let _ = spool::remove(&conf.run_dir, &request.id);
            }
            done
        }
    }
}

fn finish_del(conf: &NetConf, answer: Result<Reply, Failure>) -> Result<(), CniError> {
    match answer.map_err(|failure| failure.into_error(&conf.socket))? {
        Reply::Gone => Ok(()),
        Reply::Refused(error) => Err(error),
        Reply::Wired(_) | Reply::Fine | Reply::Address(_) => Err(unexpected()),
    }
}

fn request(verb: Verb, conf: &NetConf, attachment: Attachment) -> Request {
    Request {
        protocol: PROTOCOL,
        verb,
        id: attachment.id,
        network: conf.name.clone(),
        netns: attachment.netns,
        pod: attachment.pod,
        wishes: Wishes::default(),
        previous: None,
    }
}

fn unexpected() -> CniError {
    CniError::new(
        CniError::PROTOCOL,
        "viaduct-agent answered something else than it was asked",
    )
    .with_details("plugin and agent are of releases that do not fit together")
}
