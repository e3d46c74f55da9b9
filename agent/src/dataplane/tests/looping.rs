//! The loop, on a clock that only moves when nothing else does.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::dataplane::hints::Hint;
use crate::dataplane::reconciler::Reconciler;
use crate::state::{DataplaneReport, NodeState};

struct Loop {
    kernel: FakeKernel,
    state: watch::Sender<Option<NodeState>>,
    endpoints: watch::Sender<Endpoints>,
    hints: mpsc::Sender<Vec<Hint>>,
    report: watch::Receiver<DataplaneReport>,
}

impl Loop {
    fn start(kernel: FakeKernel) -> Self {
        let (state, state_seen) = watch::channel(None);
        let (endpoints, endpoints_seen) = watch::channel(Endpoints::default());
        let (hints, hints_seen) = mpsc::channel(4);
        let (report, report_seen) = watch::channel(DataplaneReport::default());
        let reconciler = Reconciler {
            backend: &BACKEND,
            state: state_seen,
            endpoints: endpoints_seen,
            hints: hints_seen,
            report,
        };
        tokio::spawn(reconciler.run(kernel.clone()));
        Self {
            kernel,
            state,
            endpoints,
            hints,
            report: report_seen,
        }
    }

    async fn until(&mut self, what: impl FnMut(&DataplaneReport) -> bool) -> DataplaneReport {
        timeout(Duration::from_secs(3600), self.report.wait_for(what))
            .await
            .expect("within an hour of its clock")
            .expect("the loop runs")
            .clone()
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_the_first_state_however_long_that_takes() {
    let (_, pod) = one_pod(true);
    let mut it = Loop::start(with_pod(&pod));
    sleep(Duration::from_secs(600)).await;
    it.hints.send(vec![Hint::Resync]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(it.kernel.take_log(), [""; 0]);
    assert!(!it.report.borrow().can_wire);
    it.state.send_replace(Some(Cluster::new().state()));
    let report = it.until(|r| r.verified).await;
    assert!(report.can_wire && report.problems.is_empty(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn drift_is_repaired_after_a_hint_and_without_one_by_the_audit() {
    let mut it = Loop::start(FakeKernel::default());
    it.state.send_replace(Some(Cluster::new().state()));
    it.until(|r| r.verified).await;
    sleep(Duration::from_secs(1)).await;
    it.kernel.tamper(|world| world.routes.clear());
    let begun = Instant::now();
    it.hints.send(vec![Hint::Resync]).await.unwrap();
    it.until(|r| r.repairs == 2).await;
    assert!(begun.elapsed() < Duration::from_millis(100));
    it.kernel.tamper(|world| world.routes.clear());
    it.until(|r| r.repairs == 4).await;
    let audit = begun.elapsed();
    assert!(audit > Duration::from_secs(50) && audit < Duration::from_secs(70));
}

#[tokio::test(start_paused = true)]
async fn audits_come_about_once_a_minute_and_not_by_the_clock() {
    let mut it = Loop::start(FakeKernel::default());
    it.state.send_replace(Some(Cluster::new().state()));
    it.until(|r| r.verified).await;
    sleep(Duration::from_secs(1)).await;
    let mut gaps = Vec::new();
    let mut last = Instant::now();
    for n in 1..=8 {
        // Without a word of it.
        it.kernel.tamper(|world| world.routes.clear());
        it.until(|r| r.repairs == 2 * n).await;
        gaps.push(last.elapsed());
        last = Instant::now();
    }
    let minute = |gap: &Duration| (50..70).contains(&gap.as_secs());
    assert!(gaps.iter().all(minute), "{gaps:?}");
    // Else all nodes that were started together would do it together.
    gaps.sort();
    assert!(gaps[7] - gaps[0] > Duration::from_millis(100), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_until_it_succeeds_and_pods_are_wired_meanwhile() {
    let mut it = Loop::start(FakeKernel::default());
    it.kernel
        .faults(|f| f.refuse = vec!["route 10.64.1.0/26".into()]);
    it.state.send_replace(Some(Cluster::new().state()));
    let report = it.until(|r| !r.problems.is_empty()).await;
    assert!(report.can_wire && !report.verified, "{report:?}");
    sleep(Duration::from_secs(120)).await;
    let tries = it.kernel.dumps();
    // 100 ms doubling to 10 s: some 18 in two minutes, each two looks or one.
    assert!(tries < 60, "{tries} dumps");
    it.kernel.faults(|f| f.refuse.clear());
    let begun = Instant::now();
    it.until(|r| r.verified).await;
    assert!(begun.elapsed() <= Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn others_chatter_does_not_wake_it() {
    let mut it = Loop::start(FakeKernel::default());
    it.state.send_replace(Some(Cluster::new().state()));
    it.until(|r| r.verified).await;
    sleep(Duration::from_secs(1)).await;
    let before = it.kernel.dumps();
    for i in 0..1000u32 {
        let hint = Hint::Neighbour {
            index: 2,
            address: i.into(),
            mac: None,
        };
        it.hints.send(vec![hint]).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(it.kernel.dumps(), before);
}

#[tokio::test(start_paused = true)]
async fn a_pods_change_is_looked_at_soon_and_many_at_once() {
    let (endpoints, pod) = one_pod(true);
    let mut it = Loop::start(with_pod(&pod));
    it.endpoints.send_replace(endpoints.clone());
    it.state.send_replace(Some(Cluster::new().state()));
    it.until(|r| r.verified).await;
    sleep(Duration::from_secs(1)).await;
    let before = it.kernel.dumps();
    for _ in 0..20 {
        it.endpoints.send_replace(endpoints.clone());
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(it.kernel.dumps() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_inputs() {
    let it = Loop::start(FakeKernel::default());
    let mut report = it.report.clone();
    drop((it.state, it.endpoints, it.hints));
    assert!(report.changed().await.is_err());
}
