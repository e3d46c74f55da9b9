//! Makes changes in the kernel, one answer for each.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::errno::Errno;

use super::{NetlinkError, NetlinkSocket, Request, encode, veth};
use crate::dataplane::kernel::KernelError;
use crate::dataplane::objects::LinkName;
use crate::dataplane::plan::Op;

/// Indices of links by name.
pub(super) type Indices = HashMap<LinkName, u32>;

/// Messages that are held at once; bounds the memory that 2,000 peers take.
const BATCH: usize = 512;

type Answer = Result<(), KernelError>;

/// Carries out `plan` in order. Changes that need nothing but an index are sent in
/// batches; a new link's index must be asked for first. `settings` is `/proc/sys`,
/// wherever it is mounted.
pub(super) fn apply(
    socket: &mut NetlinkSocket,
    indices: &mut Indices,
    settings: &Path,
    plan: &[Op],
) -> Vec<Answer> {
    let mut answers: Vec<Answer> = vec![Ok(()); plan.len()];
    let mut batch = Batch::default();
    let together = remove_together(socket, plan, &mut answers);
    for (i, op) in plan.iter().enumerate().skip(together) {
        match prepare(op, indices) {
            Ok(Step::Send(request)) => {
                batch.push(i, request);
                if batch.requests.len() == BATCH {
                    batch.flush(socket, plan, &mut answers);
                }
            }
            Ok(Step::Create(request)) => {
                batch.flush(socket, plan, &mut answers);
                answers[i] = create(socket, indices, op, request);
            }
            Ok(Step::File) => {
                batch.flush(socket, plan, &mut answers);
                answers[i] = refuse_router_advertisements(settings, op);
            }
            Err(error) => answers[i] = Err(error),
        }
    }
    batch.flush(socket, plan, &mut answers);
    answers
}

/// Removes the links that `plan` begins with at the price of one: most of a removal
/// is the kernel waiting, 10 ms and more, and it waits once for a whole group. Says
/// how many changes are dealt with.
fn remove_together(socket: &mut NetlinkSocket, plan: &[Op], answers: &mut [Answer]) -> usize {
    let indices: Vec<u32> = plan
        .iter()
        .map_while(|op| match op {
            Op::RemoveLink { index, .. } => Some(*index),
            _ => None,
        })
        .collect();
    // One alone is removed as it is.
    if indices.len() < 2 {
        return 0;
    }
    let results = veth::delete_together(socket, &indices);
    for ((op, answer), result) in plan.iter().zip(answers.iter_mut()).zip(results) {
        *answer = judge(op, result);
    }
    indices.len()
}

#[derive(Default)]
struct Batch {
    requests: Vec<Request>,
    ops: Vec<usize>,
}

impl Batch {
    fn push(&mut self, op: usize, request: Request) {
        self.ops.push(op);
        self.requests.push(request);
    }

    fn flush(&mut self, socket: &mut NetlinkSocket, plan: &[Op], answers: &mut [Answer]) {
        let results = socket.execute(&self.requests);
        for (op, result) in self.ops.drain(..).zip(results) {
            answers[op] = judge(&plan[op], result);
        }
        self.requests.clear();
    }
}

enum Step {
    Send(Request),
    Create(Request),
    File,
}

fn prepare(op: &Op, indices: &Indices) -> Result<Step, KernelError> {
    let of = |link: &LinkName| {
        indices
            .get(link)
            .copied()
            .ok_or_else(|| KernelError::NoLink(link.clone()))
    };
    let maybe = |link: &Option<LinkName>| link.as_ref().map(of).transpose();
    Ok(Step::Send(match op {
        Op::RemoveLink { index, .. } => encode::remove_link(*index),
        Op::CreateTunnel {
            link,
            kind,
            mac,
            mtu,
        } => {
            return encode::create_tunnel(link, kind, *mac, *mtu)
                .map(Step::Create)
                .ok_or_else(|| KernelError::Refused("it is no tunnel".to_owned()));
        }
        Op::Forward { link } => encode::forward(of(link)?),
        Op::RefuseRouterAdvertisements { link } => {
            of(link)?;
            return Ok(Step::File);
        }
        Op::Configure { link, settings } => encode::configure(of(link)?, settings),
        Op::GenerateNoAddress { link } => encode::generate_no_address(of(link)?),
        Op::SetLink { link, mac, mtu } => encode::set_link(of(link)?, *mac, *mtu),
        Op::AddAddress(address) => encode::add_address(of(&address.link)?, address),
        Op::RemoveAddress(address) => encode::remove_address(of(&address.link)?, address),
        Op::PutFdb { link, mac, remote } => encode::put_fdb(of(link)?, *mac, *remote),
        Op::RemoveFdb(entry) => encode::remove_fdb(of(&entry.link)?, entry),
        Op::PutNeighbour { link, address, mac } => encode::put_neighbour(of(link)?, *address, *mac),
        Op::RemoveNeighbour { link, address } => encode::remove_neighbour(of(link)?, *address),
        Op::AddRoute(route) => encode::add_route(maybe(&route.link)?, route),
        Op::RemoveRoute(route) => encode::remove_route(maybe(&route.link)?, route),
    }))
}

/// What is so already counts as done.
fn judge(op: &Op, result: Result<(), NetlinkError>) -> Answer {
    let error = match result {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let done = match op {
        Op::AddAddress(_) | Op::AddRoute(_) => error.already_there(),
        Op::RemoveLink { .. }
        | Op::RemoveRoute(_)
        | Op::RemoveNeighbour { .. }
        | Op::RemoveFdb(_)
        | Op::RemoveAddress(_) => error.already_gone(),
        // A kernel without IPv6 generates no IPv6 address.
        Op::GenerateNoAddress { .. } => error.refusal() == Some(Errno::EAFNOSUPPORT),
        _ => false,
    };
    if done {
        Ok(())
    } else {
        Err(KernelError::Refused(error.to_string()))
    }
}

fn create(socket: &mut NetlinkSocket, indices: &mut Indices, op: &Op, request: Request) -> Answer {
    let Some(link) = op.link() else { return Ok(()) };
    indices.remove(link);
    judge(op, socket.execute_one(request))?;
    let index = index_of(socket, link).map_err(|e| KernelError::Refused(e.to_string()))?;
    indices.insert(link.clone(), index);
    Ok(())
}

fn index_of(socket: &mut NetlinkSocket, link: &str) -> Result<u32, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(link.into()));
    let answers = socket.request(Request::new(Message::GetLink(message), 0))?;
    answers
        .iter()
        .find_map(|answer| match answer {
            Message::NewLink(link) => Some(link.header.index),
            _ => None,
        })
        .ok_or_else(|| NetlinkError::Malformed(format!("no link in the answer about {link}")))
}

/// There is no message for this setting, only the file.
fn refuse_router_advertisements(settings: &Path, op: &Op) -> Answer {
    let Op::RefuseRouterAdvertisements { link } = op else {
        return Ok(());
    };
    let path = settings.join(format!("net/ipv6/conf/{link}/accept_ra"));
    match std::fs::write(&path, "0") {
        Ok(()) => Ok(()),
        // No IPv6 on this link.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KernelError::Refused(format!(
            "{} cannot be written: {error}",
            path.display()
        ))),
    }
}
