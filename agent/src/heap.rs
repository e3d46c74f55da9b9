//! How the C library's allocator is set up for this process. Called by `main` before
//! there is a second thread; the one place with unsafe code.

/// Heaps that the threads share. The default is eight for each processor, each of which
/// grows to what its threads need at most: 20,000 pods that came and went, 32 at once,
/// left an agent with 73 MiB on two processors, and with 30 MiB by this. mallopt(3),
/// `M_ARENA_MAX`.
#[cfg(target_env = "gnu")]
const ARENAS: std::ffi::c_int = 2;

/// Keeps the number of heaps small. Other C libraries have but one.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two numbers and no pointer, may be called at any time,
        // and is called here before any other thread runs. It returns 0 if it refuses,
        // which costs memory and nothing else.
        #[allow(unsafe_code)]
        unsafe {
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
        }
    }
}
