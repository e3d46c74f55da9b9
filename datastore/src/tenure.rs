//! How a leader of an election stays one, whatever the store: it proves again and again
//! that its term lasts, and stops believing well before another may lead, by its own
//! monotonic clock. Called by the elections of etcd and Kubernetes.

use std::future::Future;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::store::Leadership;

/// For how long a proof is good.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// The leader is done this much before.
const MARGIN: Duration = Duration::from_secs(2);
/// The wait after a proof that failed for want of an answer.
pub(crate) const RETRY: Duration = Duration::from_millis(500);

/// What an attempt to prove a term came to.
#[derive(Debug)]
pub(crate) enum Proof {
    /// It lasts.
    Lasts,
    /// It is over, and why.
    Over(&'static str),
    /// The store did not answer.
    None,
}

/// A term of office, as its store knows it.
pub(crate) trait Term: Send + 'static {
    /// The election, for the log.
    fn name(&self) -> &str;

    /// Proves that it lasts, or that it does not.
    fn prove(&mut self) -> impl Future<Output = Proof> + Send;

    /// Gives it up, so that the next one need not wait. If this fails it runs out.
    fn resign(self) -> impl Future<Output = ()> + Send;
}

/// Leads for as long as `term` can be proved; `proved` is when it first was, before the
/// request was sent. Dropping what is returned resigns.
pub(crate) fn lead(term: impl Term, proved: Instant) -> Leadership {
    let (tell, lost) = watch::channel(false);
    let (held, dropped) = oneshot::channel();
    tokio::spawn(hold(term, proved, tell, dropped));
    Leadership {
        lost,
        guard: Box::new(Guard { _held: held }),
    }
}

/// Resigns when dropped: the holder's task hears that the other end is gone.
struct Guard {
    _held: oneshot::Sender<()>,
}

async fn hold(
    mut term: impl Term,
    mut proved: Instant,
    tell: watch::Sender<bool>,
    mut dropped: oneshot::Receiver<()>,
) {
    let mut pause = TTL / 3;
    let why = loop {
        let left = (TTL - MARGIN).saturating_sub(proved.elapsed());
        if left.is_zero() {
            break "it could not be proved in time";
        }
        tokio::select! {
            _ = &mut dropped => break "resigned",
            () = sleep(pause.min(left)) => {}
        }
        let left = (TTL - MARGIN).saturating_sub(proved.elapsed());
        let asked = Instant::now();
        let proof = tokio::select! {
            _ = &mut dropped => break "resigned",
            proof = timeout(left, term.prove()) => proof.unwrap_or(Proof::None),
        };
        match proof {
            Proof::Lasts => {
                proved = asked;
                pause = TTL / 3;
            }
            Proof::Over(why) => break why,
            Proof::None => pause = RETRY,
        }
    };
    tracing::info!(election = term.name(), why, "leadership ended");
    let _ = tell.send(true);
    term.resign().await;
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Proves as long as `says` holds proofs, then never answers.
    struct Scripted {
        says: Vec<Proof>,
        resigned: Arc<Mutex<bool>>,
    }

    impl Term for Scripted {
        fn name(&self) -> &str {
            "scripted"
        }

        async fn prove(&mut self) -> Proof {
            if self.says.is_empty() {
                std::future::pending::<()>().await;
            }
            self.says.remove(0)
        }

        async fn resign(self) {
            *self.resigned.lock().unwrap() = true;
        }
    }

    /// How long a leader leads that gets these answers, and whether it resigned.
    async fn led(says: Vec<Proof>) -> (Duration, bool) {
        let resigned = Arc::new(Mutex::new(false));
        let term = Scripted {
            says,
            resigned: resigned.clone(),
        };
        let begun = Instant::now();
        let mut leadership = lead(term, begun);
        leadership.lost.wait_for(|lost| *lost).await.unwrap();
        let led = begun.elapsed();
        tokio::task::yield_now().await;
        let resigned = *resigned.lock().unwrap();
        (led, resigned)
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_no_answer_is_done_before_another_may_lead() {
        let (led, resigned) = led(vec![Proof::Lasts, Proof::None, Proof::None]).await;
        // The last proof was asked for after a third of the first.
        let last = TTL / 3;
        assert!(led >= last + TTL - MARGIN - RETRY, "{led:?}");
        assert!(
            led <= last + TTL - MARGIN + Duration::from_millis(5),
            "{led:?}"
        );
        assert!(resigned);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_that_it_is_over_is_done_at_once() {
        let (led, _) = led(vec![Proof::Lasts, Proof::Over("taken")]).await;
        assert!(led < TTL, "{led:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_drops_it_resigns() {
        let resigned = Arc::new(Mutex::new(false));
        let term = Scripted {
            says: Vec::new(),
            resigned: resigned.clone(),
        };
        let leadership = lead(term, Instant::now());
        let mut lost = leadership.lost.clone();
        drop(leadership);
        lost.wait_for(|lost| *lost).await.unwrap();
        tokio::task::yield_now().await;
        assert!(*resigned.lock().unwrap());
    }
}
