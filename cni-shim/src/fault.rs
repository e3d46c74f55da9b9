//! Named points at which a test can have this process killed, as a power cut or the
//! kernel's memory killer would: without a word, in the middle of something.
//!
//! They are there only with the feature `fault-points`, which nothing but tests turns
//! on. Elsewhere a point is nothing.

/// The variable that names the point to die at.
pub const VARIABLE: &str = "VIADUCT_FAULT_POINT";

/// Whether there are points in this build.
pub const HERE: bool = cfg!(feature = "fault-points");

/// Ends this process by SIGKILL if this is the point to die at.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|armed| armed == *name) {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Ends this process by SIGKILL if this is the point to die at.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_name: &str) {}
