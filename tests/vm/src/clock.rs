//! Telling what is being done, and when.

use std::time::Instant;

/// Counts from when it was made.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Prints a line with the time.
    pub(crate) fn tell(&self, what: &str) {
        println!("[{:6.2} s] {what}", self.0.elapsed().as_secs_f64());
    }
}
