//! ADD and DEL as the plugin does them.

use std::os::fd::AsFd;

use viaduct_cni::config::NetConf;
use viaduct_cni::invocation::Attachment;
use viaduct_cni::protocol::{PROTOCOL, Reply, Request, Verb};
use viaduct_cni::{CniError, result, spool};

use crate::agent::{self, Failure};
use crate::netns;

/// Attaches, and prints the result.
pub(crate) fn add(conf: &NetConf, attachment: Attachment) -> Result<String, CniError> {
    if conf.has_previous_result {
        return Err(CniError::new(
            CniError::INVALID_CONFIG,
            "network configuration: field \"prevResult\" is present, but viaduct must be the \
             first plugin of its list",
        )
        .with_details(
            "viaduct makes the pod's interface; put the plugins that change it after it",
        ));
    }
    let pod = netns::open(&attachment.netns)?;
    let request = request(Verb::Add, conf, attachment);
    let descriptors = [pod.namespace.as_fd(), pod.rtnetlink.as_fd()];
    let reply = agent::ask(&conf.socket, &request, &descriptors)
        .map_err(|failure| failure.into_error(&conf.socket))?;
    match reply {
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
        Reply::Gone => Err(unexpected()),
    }
}

/// Detaches, or spools that when the agent is away.
pub(crate) fn del(conf: &NetConf, attachment: Attachment) -> Result<(), CniError> {
    let request = request(Verb::Del, conf, attachment);
    match agent::ask(&conf.socket, &request, &[]) {
        Err(Failure::Away(_)) => {}
        answer => return finish_del(conf, answer),
    }
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
    match agent::ask(&conf.socket, &request, &[]) {
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
        Reply::Wired(_) => Err(unexpected()),
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
    }
}

fn unexpected() -> CniError {
    CniError::new(
        CniError::PROTOCOL,
        "viaduct-agent answered something else than it was asked",
    )
    .with_details("plugin and agent are of releases that do not fit together")
}
