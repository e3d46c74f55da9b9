//! Waiting for what is to come true, with the last reason why it is not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::environment::scaled;

/// Tries until it works or `timeout`, longer on a slow machine
/// ([`PATIENCE`](crate::environment::PATIENCE)), is over; then the last error is the
/// answer.
///
/// # Errors
/// The last error of `attempt`.
pub fn eventually<T>(timeout: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let timeout = scaled(timeout);
    let mut pause = Duration::from_millis(2);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= timeout => {
                return Err(error).with_context(|| format!("still not after {timeout:?}"));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Runs `work` on every item, each on a thread of its own, at most `width` at a
/// time, and collects what came of it in the items' order.
pub fn in_parallel<I: Sync, T: Send>(
    width: usize,
    items: &[I],
    work: impl Fn(&I) -> T + Sync,
) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..width.clamp(1, items.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(item) = items.get(index) else {
                            return mine;
                        };
                        mine.push((index, work(item)));
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.join() {
                Ok(mine) => mine,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u32> = (0..100).collect();
        let doubled = in_parallel(7, &items, |i| i * 2);
        assert_eq!(doubled, items.iter().map(|i| i * 2).collect::<Vec<_>>());
        assert!(in_parallel(3, &[] as &[u32], |i| *i).is_empty());
    }

    #[test]
    fn the_last_error_is_told() {
        let error = eventually(Duration::ZERO, || -> Result<()> {
            anyhow::bail!("not yet")
        })
        .unwrap_err();
        assert!(format!("{error:#}").ends_with("not yet"));
    }
}
