//! Puts the agent's tasks together, in the order that a start needs: what can be
//! wrong is found before anything is touched, DEL works before the datastore does,
//! and nothing is registered before the name is known to be ours alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use viaduct_datastore::liveness::{HoldError, HoldState, Holding, hold};
use viaduct_datastore::records::encode;
use viaduct_datastore::store::SharedStore;
use viaduct_datastore::{NodeCidrs, StoreOptions};
use viaduct_model::{Claim, Kind};

use crate::claims;
use crate::cni::{self, CniOptions};
use crate::dataplane::reconciler::Reconciler;
use crate::egress::EgressReport;
use crate::egress::task::Egress;
use crate::egress::tool::NftTool;
use crate::flags::Flags;
use crate::health::{self, Health};
use crate::kernel::{Monitor, NetlinkKernel};
use crate::lookout::{Lookout, Terms};
use crate::memory::{self, Memory};
use crate::node::Identity;
use crate::run_dir::RunDir;
use crate::spoofed::Spoofed;
use crate::state::{DataplaneReport, UnderlayTrouble};
use crate::steward;
use crate::{adopt, announcer, http, registrar, service, tenure, view};

/// How long the node counts as alive after its agent was last heard of. Short, so
/// that a name is free again soon after a machine died.
const LIVENESS: Duration = Duration::from_secs(10);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// [`viaduct_model::Invalid`] for wrong input, anything else for a failure at run time.
pub async fn run(flags: Flags) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().context("cannot read the host name")?;
    let host = host.to_string_lossy().into_owned();
    let name = flags.node_name(&host)?;
    let options = StoreOptions {
        writer: Some("viaduct-agent".into()),
        ..flags.store.options()?
    };
    flags.check()?;
    let node_cidrs = flags.node_cidrs.choice(&options)?;
    // Before the first look, so that nothing is missed between the two.
    let underlay_hints = Monitor::open()?.spawn();
    let mut lookout = Lookout::open(Terms::of(&flags))?;
    let local = lookout.first(&name, &flags.tuning(), flags.direct_routing)?;
    let run_dir = RunDir::open(&flags.run_dir)?;
    raise_descriptor_limit();
    let listener = http::bind(flags.http).await?;
    let store = viaduct_datastore::open(&options).await?;
    let mut identity = Identity {
        name,
        incarnation: run_dir.incarnation().to_owned(),
        host,
        labels: flags.labels(),
    };
    let mut shutdown = Shutdown::listen()?;
    tracing::info!(
        node = %identity.name,
        backend = flags.backend.name,
        underlay = %local.underlay.address,
        device = %local.underlay.name,
        mtu = local.mtu,
        store = %store.describe(),
        "viaduct-agent {} starts", env!("CARGO_PKG_VERSION")
    );

    let (state, states) = watch::channel(None);
    let (trouble, troubles) = watch::channel(UnderlayTrouble::default());
    let (report, reports) = watch::channel(DataplaneReport::default());
    let mut cni_options = CniOptions::new(run_dir.path());
    cni_options.cool_down = flags.address_cool_down;
    cni_options.memory = Memory::load(run_dir.path(), &identity.name);
    let (tenure_out, tenures) =
        watch::channel(Arc::new(tenure::load(run_dir.path(), &identity.name)));
    cni_options.tenure = Some(tenures.clone());
    let cni_metrics = cni_options.metrics.clone();
    let cni = cni::start(cni_options, states.clone(), reports.clone()).await?;
    let (egress_report, egress_reports) = watch::channel(EgressReport::default());
    let egress = Egress {
        options: flags.egress(),
        state: states.clone(),
        report: egress_report,
    };
    tokio::spawn(egress.run(NftTool));
    let reconciler = Reconciler {
        backend: flags.backend,
        state: states.clone(),
        endpoints: cni.endpoints.clone(),
        hints: Monitor::open()?.spawn(),
        report,
    };
    let release = nix::sys::utsname::uname().context("cannot read the kernel's release")?;
    let kernel = NetlinkKernel::open()?
        .for_release(&release.release().to_string_lossy())
        .with_settings_at(&flags.proc_sys)?;
    let mut dataplane = tokio::spawn(reconciler.run(kernel));
    let views = view::publish(store.clone());
    let sources = health::Sources {
        store: store.connectivity(),
        view: views.clone(),
        report: reports.clone(),
        egress: egress_reports.clone(),
        usage: cni.usage.clone(),
        trouble: troubles.clone(),
    };
    tokio::spawn(http::serve(
        listener,
        Health::new(sources, Spoofed::from_now(), |registry| {
            cni_metrics.register(registry);
        }),
    ));

    let (cidr_conflict, cidr_conflicts) = watch::channel(None);
    let claim = claims::Sources {
        cidrs: cidr_conflicts,
        view: views.clone(),
        usage: cni.usage.clone(),
        report: reports.clone(),
        trouble: troubles,
        egress: egress_reports.clone(),
        tenure: tenures.clone(),
    };
    let first = claim.claim(&identity, None);
    let holding = tokio::select! {
        holding = take_name(&store, &identity, &first) => holding?,
        () = shutdown.requested() => return Ok(()),
    };
    add_labels(&store, &mut identity).await;
    tokio::spawn(announcer::run(
        store.clone(),
        identity.name.clone(),
        reports.clone(),
        views.clone(),
    ));
    if node_cidrs == NodeCidrs::Adopt {
        tokio::spawn(adopt::run(
            store.clone(),
            identity.name.clone(),
            views.clone(),
            tenures.clone(),
            cidr_conflict,
        ));
    }
    let (record, records) = watch::channel(None);
    tokio::spawn(registrar::keep(
        store.clone(),
        identity.name.clone(),
        records,
        views.clone(),
    ));
    tokio::spawn(
        tenure::Keeper {
            store: store.clone(),
            run_dir: run_dir.path().to_owned(),
            view: views.clone(),
            usage: cni.usage.clone(),
            out: tenure_out,
            give_back_after: flags.give_back_after,
        }
        .run(),
    );
    tokio::spawn(claims::keep(
        identity.clone(),
        first,
        holding.content.clone(),
        claim,
    ));
    tokio::spawn(steward::run(
        identity.clone(),
        local,
        steward::Ground {
            lookout,
            hints: underlay_hints,
        },
        views,
        tenures,
        steward::Outputs {
            state,
            record,
            trouble,
        },
    ));
    tokio::spawn(memory::keep(
        run_dir.path().to_owned(),
        states.clone(),
        holding.state.clone(),
        holding.lag,
    ));
    tokio::spawn(steward::keep_subnet_env(
        run_dir.path().join("subnet.env"),
        steward::SubnetSources {
            state: states,
            report: reports.clone(),
            egress: egress_reports.clone(),
        },
    ));

    tokio::spawn(service::announce(reports.clone(), egress_reports.clone()));

    tokio::select! {
        () = shutdown.requested() => tracing::info!("stopping; the dataplane stays as it is"),
        () = verified(reports, egress_reports), if flags.once => tracing::info!("the kernel is verified; done (--once)"),
        ended = &mut dataplane => {
            ended?.context("the reconcile loop failed")?;
            anyhow::bail!("the reconcile loop ended");
        }
        by = taken(holding.state.clone()) => {
            anyhow::bail!("another agent took the node name {:?} while this one did not reach the datastore: {by}", identity.name.as_str());
        }
    }
    service::stopping();
    cni.stop().await;
    holding.release().await;
    Ok(())
}

/// Adds the labels that the cluster itself has on this node to those of the flags, which
/// come first. As they are now: a change counts from the next start.
async fn add_labels(store: &SharedStore, identity: &mut Identity) {
    match store.node_labels(identity.name.as_str()).await {
        Ok(labels) => {
            for (key, value) in labels {
                identity.labels.entry(key).or_insert(value);
            }
        }
        Err(error) => {
            tracing::warn!(%error, "this node's labels in the cluster cannot be read; pools select it by --node-label alone");
        }
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

/// Waits until the kernel is verified with an overlay address in it, and so is the
/// nft table.
async fn verified(
    mut reports: watch::Receiver<DataplaneReport>,
    mut egress: watch::Receiver<EgressReport>,
) {
    let dataplane = reports.wait_for(|r| r.verified && r.can_wire).await.is_ok();
    if !dataplane || egress.wait_for(|r| r.verified).await.is_err() {
        std::future::pending().await
    }
}

/// Takes as many descriptors as the process may have: the usual limit of 1,024 is for
/// programs that use `select`.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
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
