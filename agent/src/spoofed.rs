//! How many packets the kernel's source check has dropped.
//!
//! The check itself is the `rp_filter` of pods' devices, which the dataplane keeps
//! (`dataplane::endpoints`, docs/adr/0052). The kernel counts what it drops for the whole
//! network namespace, so this is a number of the node and of every device that checks
//! sources. Read when metrics are asked for, and never otherwise.

/// The counters of this thread's network namespace.
const COUNTERS: &str = "/proc/thread-self/net/netstat";

/// The group of counters, and ours in it.
const GROUP: &str = "TcpExt:";
const COUNTER: &str = "IPReversePathFilter";

/// What has been dropped since this was made.
#[derive(Debug, Clone)]
pub struct Spoofed {
    at_start: u64,
}

impl Spoofed {
    /// Counts from now on.
    pub fn from_now() -> Self {
        let at_start = now().unwrap_or_else(|| {
            tracing::warn!(
                "{COUNTERS} does not tell {COUNTER}: dropped packets of foreign sources are \
                 not counted"
            );
            0
        });
        Self { at_start }
    }

    /// How many packets since then.
    pub fn count(&self) -> u64 {
        now().unwrap_or_default().saturating_sub(self.at_start)
    }
}

fn now() -> Option<u64> {
    dropped(&std::fs::read_to_string(COUNTERS).ok()?)
}

/// Each group is two lines that begin with its name: the counters' names, and their values.
fn dropped(text: &str) -> Option<u64> {
    let mut group = text.lines().filter_map(|line| line.strip_prefix(GROUP));
    let (names, values) = (group.next()?, group.next()?);
    let place = names.split_whitespace().position(|name| name == COUNTER)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_by_its_name_among_those_of_its_group() {
        let text = "TcpExt: A IPReversePathFilter B\nTcpExt: 1 7 3\n\
                    IpExt: IPReversePathFilter C\nIpExt: 8 9\n";
        assert_eq!(dropped(text), Some(7));
        for text in [
            "",
            "TcpExt: IPReversePathFilter\n",
            "TcpExt: A\nTcpExt: 1\n",
        ] {
            assert_eq!(dropped(text), None, "{text}");
        }
    }
}
