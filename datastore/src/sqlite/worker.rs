//! The thread that owns a store's connection, and the way to it.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::engine::Engine;
use crate::store::StoreError;

type Job = Box<dyn FnOnce(&mut Engine) + Send>;

/// How long a caller waits for its answer. Longer than sqlite waits for a lock.
const PATIENCE: Duration = Duration::from_secs(5);

/// A handle of the thread, which ends when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Worker {
    store: String,
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread for the store at `path`.
    pub(super) fn start(store: String, path: PathBuf) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let mut engine = Engine::new(store.clone(), path);
        std::thread::Builder::new()
            .name("viaduct-sqlite".into())
            .stack_size(512 * 1024)
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut engine);
                }
            })?;
        Ok(Self { store, jobs })
    }

    /// Runs `f` on the thread. When the wait is cut short `f` still runs, as a
    /// request that is on its way to a server would.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let unavailable = |reason: &str| StoreError::Unavailable {
            store: self.store.clone(),
            reason: reason.into(),
        };
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            // The caller may be gone; the work is done all the same.
            let _ = answer.send(f(engine));
        });
        self.jobs
            .send(job)
            .map_err(|_| unavailable("its thread has ended"))?;
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(unavailable("its thread has ended")),
            Err(_) => Err(unavailable("the disk did not answer within 5 s")),
        }
    }
}
