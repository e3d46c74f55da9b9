//! Owns this node's state: decides its overlay address from each new view, follows what
//! happens to the underlay, and publishes what the dataplane, the CNI server and the
//! registrar act on.
//!
//! Hints of the kernel only ever say that it is time to look the underlay over again; a
//! slow audit looks in any case. While nothing can be chosen the last choice stands.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use viaduct_model::{Cidr, ClusterView, Node, Tenure};

use crate::clock::now_ms;
use crate::dataplane::hints::Hint;
use crate::egress::EgressReport;
use crate::kernel::arp;
use crate::lookout::Lookout;
use crate::node::{self, Identity};
use crate::run_dir::write_atomically;
use crate::state::{DataplaneReport, LocalNode, NodeState, UnderlayTrouble};
use crate::subnet_env;
use crate::underlay;

/// How long after the first hint the underlay is looked over: changes come in groups (an
/// address and its routes).
const SETTLE: Duration = Duration::from_millis(5);

/// The least time between two looks, so that a storm of changes costs little.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the underlay is looked over though nothing called for it, in seconds.
const AUDIT_SECONDS: std::ops::Range<f64> = 54.0..66.0;

/// Where the steward publishes.
#[derive(Debug)]
pub struct Outputs {
    /// For the dataplane and the CNI server.
    pub state: watch::Sender<Option<NodeState>>,
    /// For the registrar: the Node record that should stand in the store.
    pub record: watch::Sender<Option<Node>>,
    /// What is the matter with the underlay.
    pub trouble: watch::Sender<UnderlayTrouble>,
}

/// What the steward is told, beside the view.
#[derive(Debug)]
pub struct Ground {
    /// Asks the kernel about the underlay.
    pub lookout: Lookout,
    /// What the kernel says has changed.
    pub hints: mpsc::Receiver<Vec<Hint>>,
}

/// Runs until the view's publisher is gone, or the kernel can be asked no more.
pub async fn run(
    identity: Identity,
    local: LocalNode,
    ground: Ground,
    mut view: watch::Receiver<Option<Arc<ClusterView>>>,
    mut tenure: watch::Receiver<Arc<Tenure>>,
    outputs: Outputs,
) {
    let Ground { lookout, mut hints } = ground;
    let mut place = Place {
        lookout,
        local,
        on_link: Arc::default(),
        disputed: Arc::default(),
        lost: Arc::default(),
        asked: BTreeSet::new(),
        trouble: UnderlayTrouble::default(),
        moved: None,
    };
    let mut last_look = Instant::now();
    // What happened since the start's own look is looked for once.
    let mut due = last_look;
    let mut told: Option<NodeState> = None;
    loop {
        let look = due <= Instant::now();
        let current = view.borrow_and_update().clone();
        place.hold(&tenure.borrow_and_update());
        let peers = wanted_peers(&place.local, current.as_deref());
        if look || peers != place.asked {
            // The kernel answers at once, but 2,000 questions take their time.
            let done = tokio::task::spawn_blocking(move || {
                place.update(look, peers);
                place
            });
            place = match done.await {
                Ok(place) => place,
                Err(error) => {
                    tracing::error!(%error, "the underlay can be looked over no more");
                    return;
                }
            };
            if let Some(announcement) = place.moved.take() {
                tokio::spawn(announce(announcement));
            }
            if look {
                last_look = Instant::now();
                due = last_look + Duration::from_secs_f64(rand::random_range(AUDIT_SECONDS));
            }
            outputs.trouble.send_if_modified(|told| place.tell(told));
        }
        if let Some(view) = current {
            place.own(&view, &identity);
            publish(&place, view, &identity, &mut told, &outputs);
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = tenure.changed() => if changed.is_err() { return },
            Some(hints) = hints.recv() => {
                if hints.iter().any(underlay::concerns) {
                    due = due.min((Instant::now() + SETTLE).max(last_look + PAUSE));
                }
            }
            () = sleep_until(due) => {}
        }
    }
}

/// Tells everybody on the underlay's link where this node is now. Else those that have
/// sent to it lately would send to where it was until they doubt that by themselves, which
/// takes Linux half a minute.
async fn announce(announcement: arp::Announcement) {
    if let Err(error) = announcement.begin() {
        tracing::warn!(%error, "the underlay's new address is not announced");
        return;
    }
    tokio::time::sleep(arp::LASTS).await;
    // Where it is gone with its device there is nothing left to end.
    if let Err(error) = announcement.end() {
        tracing::debug!(%error, "the announcement of the underlay's address has ended itself");
    }
}

/// The peers about whose underlay addresses the kernel is asked: all, where plain routes
/// are wanted.
fn wanted_peers(local: &LocalNode, view: Option<&ClusterView>) -> BTreeSet<Ipv4Addr> {
    let direct = local.direct_routing || local.carrier == viaduct_model::Backend::HostGw;
    view.filter(|_| direct)
        .into_iter()
        .flat_map(|view| &view.nodes)
        .filter(|(name, _)| **name != local.name)
        .filter_map(|(_, node)| node.underlay.v4)
        .collect()
}

/// This node and what is known of where it stands.
struct Place {
    lookout: Lookout,
    local: LocalNode,
    on_link: Arc<BTreeSet<Ipv4Addr>>,
    disputed: Arc<BTreeSet<Cidr>>,
    lost: Arc<BTreeSet<Cidr>>,
    /// The peers that the kernel was asked about.
    asked: BTreeSet<Ipv4Addr>,
    trouble: UnderlayTrouble,
    /// Who has to be told where this node is now.
    moved: Option<arp::Announcement>,
}

impl Place {
    /// Looks the underlay over if asked to, and at the peers: all then, else the new ones.
    fn update(&mut self, look: bool, peers: BTreeSet<Ipv4Addr>) {
        if look {
            let before = self.local.underlay.clone();
            self.trouble = self.lookout.look(&mut self.local);
            let now = &self.local.underlay;
            if before != *now {
                tracing::info!(
                    device = %now.name, index = now.index, address = %now.address,
                    public = %now.public_address, mtu = self.local.mtu,
                    "the underlay has changed"
                );
            }
            self.moved = underlay::has_moved(&before, now).then_some(arp::Announcement {
                link: now.index,
                address: now.address,
            });
        }
        let known = |ip: &Ipv4Addr| !look && self.asked.contains(ip);
        let new: Vec<Ipv4Addr> = peers.iter().copied().filter(|ip| !known(ip)).collect();
        match self.lookout.on_link(&self.local, new) {
            Ok(found) => {
                let kept = self.on_link.iter().copied().filter(known);
                let on_link: BTreeSet<Ipv4Addr> =
                    kept.filter(|ip| peers.contains(ip)).chain(found).collect();
                if *self.on_link != on_link {
                    self.on_link = Arc::new(on_link);
                }
                self.asked = peers;
            }
            Err(error) => self.trouble.problems.push(format!(
                "which peers are adjacent stays as it was: {error:#}"
            )),
        }
    }

    /// Takes in which blocks we hold against an older record, and which we lost.
    fn hold(&mut self, tenure: &Tenure) {
        let (disputed, lost) = (tenure.disputed(now_ms()), tenure.lost());
        if *self.disputed != disputed {
            self.disputed = Arc::new(disputed);
        }
        if *self.lost != lost {
            self.lost = Arc::new(lost);
        }
    }

    /// Takes or gives up the overlay address.
    fn own(&mut self, view: &ClusterView, identity: &Identity) {
        let local = &mut self.local;
        let overlay = node::overlay(view, &identity.name, local.overlay);
        if overlay != local.overlay {
            match overlay {
                Some(ip) => tracing::info!(overlay = %ip, "the node owns a block"),
                None => tracing::warn!("the node owns no block any more"),
            }
            local.overlay = overlay;
        }
    }

    /// Tells what is the matter, and whether that is news.
    fn tell(&self, told: &mut UnderlayTrouble) -> bool {
        if *told == self.trouble {
            return false;
        }
        for sentence in self.trouble.problems.iter().chain(&self.trouble.warnings) {
            tracing::warn!("underlay: {sentence}");
        }
        if self.trouble == UnderlayTrouble::default() {
            tracing::info!("the underlay is clear again");
        }
        *told = self.trouble.clone();
        true
    }
}

fn publish(
    place: &Place,
    view: Arc<ClusterView>,
    identity: &Identity,
    told: &mut Option<NodeState>,
    outputs: &Outputs,
) {
    let standing = view.nodes.get(&identity.name).map(Arc::as_ref);
    let record = node::record(identity, &place.local, standing);
    outputs.record.send_if_modified(|published| {
        let changed = published.as_ref() != Some(&record);
        *published = Some(record);
        changed
    });
    let same = told.as_ref().is_some_and(|told| {
        Arc::ptr_eq(&told.view, &view)
            && Arc::ptr_eq(&told.on_link, &place.on_link)
            && Arc::ptr_eq(&told.disputed, &place.disputed)
            && Arc::ptr_eq(&told.lost, &place.lost)
            && told.local == place.local
    });
    if !same {
        let state = NodeState {
            local: place.local.clone(),
            view,
            on_link: place.on_link.clone(),
            disputed: place.disputed.clone(),
            lost: place.lost.clone(),
        };
        *told = Some(state.clone());
        outputs.state.send_replace(Some(state));
    }
}

/// What `subnet.env` is written from.
#[derive(Debug)]
pub struct SubnetSources {
    /// The node and the cluster.
    pub state: watch::Receiver<Option<NodeState>>,
    /// Whether pods can be wired.
    pub report: watch::Receiver<DataplaneReport>,
    /// Whether the nft table stands.
    pub egress: watch::Receiver<EgressReport>,
}

/// Writes `subnet.env` once the node can wire pods, and again when it changes.
pub async fn keep_subnet_env(path: PathBuf, mut sources: SubnetSources) {
    let (mut written, mut nat_stood) = (None, false);
    loop {
        let can_wire = sources.report.borrow_and_update().can_wire;
        // What the file says of masquerading must be so; that it was undone for a
        // moment later is no reason to say anything else.
        nat_stood |= sources.egress.borrow_and_update().verified;
        let content = sources
            .state
            .borrow_and_update()
            .as_ref()
            .and_then(subnet_env::content);
        if can_wire && nat_stood && content.is_some() && content != written {
            match write_atomically(&path, content.as_deref().unwrap_or_default().as_bytes()) {
                Ok(()) => written = content,
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "cannot write subnet.env")
                }
            }
        }
        tokio::select! {
            changed = sources.state.changed() => if changed.is_err() { return },
            changed = sources.report.changed() => if changed.is_err() { return },
            changed = sources.egress.changed(), if !nat_stood => if changed.is_err() { return },
        }
    }
}
