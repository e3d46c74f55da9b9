//! Puts the agent's tasks together, in the order that a start needs: what can be
//! wrong is found before anything is touched, DEL works before the datastore does,
//! and nothing is registered before the name is known to be ours alone.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use viaduct_datastore::liveness::{HoldError, HoldState, Holding, hold};
use viaduct_datastore::records::encode;
use viaduct_datastore::store::SharedStore;
use viaduct_model::{Claim, Invalid, Kind, MacAddr, NodeName};

use crate::claims;
use crate::cni::{self, CniOptions};
use crate::dataplane::reconciler::Reconciler;
use crate::flags::Flags;
use crate::health::{self, Health};
use crate::kernel::{Monitor, NetlinkKernel, NetlinkSocket, survey};
use crate::node::Identity;
use crate::run_dir::RunDir;
use crate::state::{DataplaneReport, LocalNode, UnderlayLink};
use crate::steward;
use crate::underlay::{self, Wish};
use crate::{backend, http, registrar, view};

/// What VXLAN over IPv4 adds to each packet, in bytes: outer IPv4 20, UDP 8, VXLAN
/// 8, inner Ethernet 14 (RFC 7348).
const VXLAN_OVERHEAD: u32 = 50;

/// How long the node counts as alive after its agent was last heard of. Short, so
/// that a name is free again soon after a machine died.
const LIVENESS: Duration = Duration::from_secs(10);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// [`Invalid`] for wrong input, anything else for a failure at run time.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let host = host.to_string_lossy().into_owned();
    let name = flags.node_name(&host)?;
    let options = flags.store.options()?;
    let local = local_node(&flags, &name)?;
    let run_dir = RunDir::open(&flags.run_dir)?;
    let listener = http::bind(flags.http).await?;
    let store = viaduct_datastore::open(&options).await?;
    let identity = Identity {
        name,
        incarnation: run_dir.incarnation().to_owned(),
        host,
        labels: flags.labels(),
    };
    let mut shutdown = Shutdown::listen()?;
    tracing::info!(
        node = %identity.name,
        underlay = %local.underlay.address,
        device = %local.underlay.name,
        mtu = local.mtu,
        store = %store.describe(),
        "viaduct-agent {} starts", env!("CARGO_PKG_VERSION")
    );

    let (state, states) = watch::channel(None);
    let (report, reports) = watch::channel(DataplaneReport::default());
    let cni_options = CniOptions::new(run_dir.path());
    let cni_metrics = cni_options.metrics.clone();
    let cni = cni::start(cni_options, states.clone(), reports.clone()).await?;
    let reconciler = Reconciler {
        backend: backend::by_name("vxlan").context("the vxlan backend is not built in")?,
        state: states.clone(),
        endpoints: cni.endpoints.clone(),
        hints: Monitor::open()?.spawn(),
        report,
    };
    let mut dataplane = tokio::spawn(reconciler.run(NetlinkKernel::open()?));
    let views = view::publish(store.clone());
    let sources = health::Sources {
        store: store.connectivity(),
        view: views.clone(),
        report: reports.clone(),
        usage: cni.usage.clone(),
    };
    tokio::spawn(http::serve(
        listener,
        Health::new(sources, |registry| cni_metrics.register(registry)),
    ));

    let claim = claims::Sources {
        view: views.clone(),
        usage: cni.usage.clone(),
        report: reports.clone(),
    };
    let first = claim.claim(&identity, None);
    let holding = tokio::select! {
        holding = take_name(&store, &identity, &first) => holding?,
        () = shutdown.requested() => return Ok(()),
    };
    let (record, records) = watch::channel(None);
    tokio::spawn(registrar::keep(
        store.clone(),
        identity.name.clone(),
        records,
        views.clone(),
    ));
    tokio::spawn(claims::keep(
        identity.clone(),
        first,
        holding.content.clone(),
        claim,
    ));
    tokio::spawn(steward::run(
        identity.clone(),
        local,
        views,
        steward::Outputs { state, record },
    ));
    tokio::spawn(steward::keep_subnet_env(
        run_dir.path().join("subnet.env"),
        states,
        reports.clone(),
    ));

    tokio::select! {
        () = shutdown.requested() => tracing::info!("stopping; the dataplane stays as it is"),
        () = verified(reports), if flags.once => tracing::info!("the kernel is verified; done (--once)"),
        ended = &mut dataplane => {
            ended?.context("the reconcile loop failed")?;
            anyhow::bail!("the reconcile loop ended");
        }
        by = taken(holding.state.clone()) => {
            anyhow::bail!("another agent took the node name {:?} while this one did not reach the datastore: {by}", identity.name.as_str());
        }
    }
    cni.stop().await;
    holding.release().await;
    Ok(())
}

/// This node as the flags and the system say, before it owns a block.
fn local_node(flags: &Flags, name: &NodeName) -> anyhow::Result<LocalNode> {
    let mut socket = NetlinkSocket::open()?;
    let wish = wish(flags)?;
    let underlay = underlay::choose(&survey::survey(&mut socket)?, &wish, flags.public_ip)?;
    Ok(LocalNode {
        vtep_mac: MacAddr::for_vtep(name),
        name: name.clone(),
        vni: flags.vni,
        port: flags.port,
        mtu: mtu(flags.mtu, &underlay)?,
        underlay,
        overlay: None,
    })
}

fn wish(flags: &Flags) -> anyhow::Result<Wish> {
    Ok(match (&flags.iface, &flags.iface_regex, flags.can_reach) {
        (Some(name), _, _) => Wish::Iface(name.clone()),
        (_, Some(regex), _) => Wish::IfaceRegex(regex.clone()),
        (_, _, Some(target)) => {
            let source = survey::source_towards(target)
                .with_context(|| format!("--can-reach {target}: there is no route to it"))?;
            let std::net::IpAddr::V4(source) = source else {
                return Err(Invalid::new(
                    "flag",
                    "--can-reach",
                    target,
                    "an IPv4 address, as this release's underlay is IPv4",
                )
                .into());
            };
            Wish::CanReach { target, source }
        }
        _ => Wish::DefaultRoute,
    })
}

/// The MTU of tunnel and pods: what was asked for if it fits, else what fits.
fn mtu(asked: Option<u32>, underlay: &UnderlayLink) -> Result<u32, Invalid> {
    let fits = underlay.mtu.saturating_sub(VXLAN_OVERHEAD);
    match asked {
        Some(asked) if asked > fits => Err(Invalid::new(
            "flag",
            "--mtu",
            asked,
            format!(
                "at most {fits}: the MTU of {} is {} and VXLAN takes {VXLAN_OVERHEAD}",
                underlay.name, underlay.mtu
            ),
        )),
        Some(asked) => Ok(asked),
        None => Ok(fits),
    }
}

/// Takes hold of the node's claim, which is what makes the name ours alone.
async fn take_name(
    store: &SharedStore,
    identity: &Identity,
    first: &Claim,
) -> anyhow::Result<Holding> {
    let name = identity.name.as_str();
    let ours = identity.incarnation.clone();
    let same_owner = move |bytes: &[u8]| {
        // A claim that cannot be read has no owner that could be asked.
        serde_json::from_slice::<Claim>(bytes).map_or(true, |c| c.incarnation == ours)
    };
    match hold(
        store.clone(),
        Kind::Claim,
        name,
        encode(name, first)?,
        same_owner,
        LIVENESS,
    )
    .await
    {
        Ok(holding) => Ok(holding),
        Err(HoldError::Held { by, .. }) => anyhow::bail!(
            "another agent runs under the node name {name:?}: {}; give this node a name of its own with --node-name",
            owner(&by)
        ),
        Err(HoldError::Invalid(invalid)) => Err(invalid.into()),
    }
}

/// Names the agent that wrote a claim.
fn owner(claim: &[u8]) -> String {
    match serde_json::from_slice::<Claim>(claim) {
        Ok(c) => format!(
            "host {:?}, incarnation {}, release {}",
            c.host, c.incarnation, c.agent_version
        ),
        Err(_) => "its claim cannot be read".to_owned(),
    }
}

/// Waits until somebody else has taken the claim; says who.
async fn taken(mut state: watch::Receiver<HoldState>) -> String {
    let by = match state
        .wait_for(|s| matches!(s, HoldState::Taken { .. }))
        .await
    {
        Ok(state) => match &*state {
            HoldState::Taken { by } => Some(owner(by)),
            _ => None,
        },
        Err(_) => None,
    };
    match by {
        Some(by) => by,
        None => std::future::pending().await,
    }
}

/// Waits until the kernel is verified with an overlay address in it.
async fn verified(mut reports: watch::Receiver<DataplaneReport>) {
    if reports
        .wait_for(|r| r.verified && r.can_wire)
        .await
        .is_err()
    {
        std::future::pending().await
    }
}

/// SIGTERM and SIGINT.
struct Shutdown {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Shutdown {
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let what = "cannot listen for signals";
        Ok(Self {
            term: signal(SignalKind::terminate()).context(what)?,
            int: signal(SignalKind::interrupt()).context(what)?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn underlay(mtu: u32) -> UnderlayLink {
        UnderlayLink {
            name: "eth0".into(),
            index: 2,
            address: "192.0.2.1".parse().unwrap(),
            public_address: "192.0.2.1".parse().unwrap(),
            networks: Vec::new(),
            mtu,
        }
    }

    #[test]
    fn the_mtu_leaves_room_for_the_tunnel() {
        assert_eq!(mtu(None, &underlay(1500)), Ok(1450));
        assert_eq!(mtu(Some(1400), &underlay(1500)), Ok(1400));
        let error = mtu(Some(1451), &underlay(1500)).unwrap_err().to_string();
        assert!(error.contains("at most 1450"), "{error}");
    }
}
