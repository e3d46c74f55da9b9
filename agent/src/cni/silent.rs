//! Clients that have connected and not asked yet. There may be thousands that never
//! will; the next one that does ask must not wait for them.
//!
//! They cost descriptors. When there are too many, those that are silent the longest
//! are dropped: the plugin asks at once, so that they are not it.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Never more than these, whatever the process may open.
const MOST: u64 = 4096;

/// From so many on it is looked who has spoken: what is kept of a task keeps the memory
/// of the whole task, also when that has ended.
const FEW: usize = 64;

/// Descriptors that everything else in the agent needs, and what one client may cost.
const OTHERS: u64 = 256;
const EACH: u64 = 3;

/// Whoever is silent for no longer than this is not dropped; a busy machine may take
/// that long to let a plugin speak.
const GRACE: Duration = Duration::from_millis(500);

/// Those that are silent, the oldest first.
#[derive(Debug)]
pub(super) struct Silent {
    most: usize,
    /// When there are so many, those that have spoken are let go. Twice of what the last
    /// look left, so that a look costs each client no more than two steps.
    look_at: usize,
    clients: VecDeque<(Instant, AbortHandle)>,
}

impl Silent {
    /// For as many as this process has descriptors for.
    pub(super) fn with_descriptors_of_this_process() -> Self {
        let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Self::of(usize::try_from(room_for(allowed)).unwrap_or(1))
    }

    fn of(most: usize) -> Self {
        Self {
            most,
            look_at: FEW,
            clients: VecDeque::new(),
        }
    }

    /// Hears one that has connected; `hearing` ends when it has spoken.
    pub(super) fn listen_to(&mut self, hearing: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(hearing).abort_handle();
        self.clients.push_back((Instant::now(), task));
    }

    /// Waits until there is room for one more, and makes it if need be.
    pub(super) async fn make_room(&mut self) {
        if self.clients.len() < self.look_at.min(self.most) {
            return;
        }
        self.clients.retain(|(_, task)| !task.is_finished());
        self.look_at = FEW.max(2 * self.clients.len());
        while self.clients.len() >= self.most {
            let Some((since, oldest)) = self.clients.front().cloned() else {
                return;
            };
            tokio::time::sleep_until(since + GRACE).await;
            if !oldest.is_finished() {
                tracing::warn!(
                    clients = self.clients.len(),
                    "a client of the CNI socket that asks nothing is dropped: there are too many"
                );
                oldest.abort();
            }
            self.clients.pop_front();
        }
    }
}

fn room_for(descriptors: u64) -> u64 {
    (descriptors.saturating_sub(OTHERS) / EACH).clamp(64, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_the_process_may_open() {
        assert_eq!(room_for(1024), 256);
        assert_eq!(room_for(0), 64);
        assert_eq!(room_for(u64::MAX), MOST);
    }

    #[tokio::test]
    async fn nothing_is_kept_of_the_many_that_have_spoken() {
        let mut silent = Silent::of(4096);
        for _ in 0..100 {
            silent.listen_to(std::future::pending());
        }
        for _ in 0..10_000 {
            silent.make_room().await;
            silent.listen_to(async {});
            tokio::task::yield_now().await;
        }
        let kept = silent.clients.len();
        assert!((100..=2 * 100 + FEW).contains(&kept), "{kept}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_goes_once_it_had_its_time_and_who_has_spoken_counts_no_more() {
        let mut silent = Silent::of(3);
        silent.listen_to(std::future::pending());
        silent.listen_to(async {});
        silent.listen_to(std::future::pending());
        let stuck = silent.clients[0].1.clone();
        tokio::task::yield_now().await;
        let begun = Instant::now();
        silent.make_room().await;
        assert_eq!((silent.clients.len(), begun.elapsed()), (2, Duration::ZERO));
        silent.listen_to(std::future::pending());
        silent.make_room().await;
        assert!(begun.elapsed() >= GRACE);
        tokio::task::yield_now().await;
        assert!(stuck.is_finished());
        assert_eq!(silent.clients.len(), 2);
    }
}
