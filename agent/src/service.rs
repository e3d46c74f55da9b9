//! Telling a service manager how the agent fares (`sd_notify`): ready once the kernel is
//! verified, stopping when it was told to. Without `NOTIFY_SOCKET` nothing is told.
//!
//! Called by [`run`](crate::run::run). Must never keep the agent from anything.

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::egress::EgressReport;
use crate::state::DataplaneReport;

/// Says that the agent is ready, once the kernel is as the cluster wants it: also while the
/// node owns no block yet, since who waits for this may be about to start the controller.
pub async fn announce(
    mut reports: watch::Receiver<DataplaneReport>,
    mut egress: watch::Receiver<EgressReport>,
) {
    let dataplane = reports.wait_for(|report| report.verified).await.is_ok();
    if dataplane && egress.wait_for(|report| report.verified).await.is_ok() {
        tell(&[
            NotifyState::Ready,
            NotifyState::Status("the kernel is verified"),
        ]);
    }
}

/// Says that the agent stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
