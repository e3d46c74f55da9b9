//! What a soak came to, as text.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Kind;
use crate::tally::Tally;
use crate::vitals::Vitals;

/// How much of what was wrong is told at the end, in characters each: the whole of it is
/// kept with the logs.
const TOLD: usize = 600;

/// What a soak came to.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// What all was drawn from.
    pub seed: u64,
    /// How long things happened.
    pub took: Duration,
    /// The backend's name.
    pub backend: &'static str,
    /// What runtimes did.
    pub tally: Tally,
    /// What happened.
    pub events: BTreeMap<Kind, Happened>,
    /// Datagrams that pods which stay sent each other.
    pub sent: usize,
    /// Those that were lost while an event cut their way.
    pub allowed: usize,
    /// Those that were lost otherwise.
    pub lost: usize,
    /// What agents had when half of the time was over.
    pub half_time: Option<Vec<Vitals>>,
    /// What they had at the start, at half-time and at the end.
    pub vitals: Vec<[Vitals; 3]>,
    /// What was found at the end, one line each.
    pub end: Vec<String>,
    /// Everything that was wrong.
    pub faults: Vec<String>,
}

/// What happened of one kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Happened {
    /// How often.
    pub count: u32,
    /// The longest until all was well again.
    pub longest: Duration,
}

impl Summary {
    /// An event happened, and all was well again after so long.
    pub(crate) fn happened(&mut self, kind: Kind, recovery: Duration) {
        let happened = self.events.entry(kind).or_default();
        happened.count += 1;
        happened.longest = happened.longest.max(recovery);
    }

    /// All of it, for people.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "soak: {} with SOAK_SEED={}; three nodes ({}), two controllers, etcd",
                minutes(self.took),
                self.seed,
                self.backend
            ),
            self.runtimes(),
        ];
        let events: u32 = self.events.values().map(|happened| happened.count).sum();
        lines.push(format!(
            "{events} events, and the longest until all was well again:"
        ));
        lines.extend(self.events.iter().map(|(kind, happened)| {
            let (count, longest) = (happened.count, happened.longest.as_secs_f64());
            format!("  {:<34} {count:>5} {longest:>8.2} s", kind.name())
        }));
        lines.push(format!(
            "datagrams between pods that stay: {} sent, {} lost while an event cut their way, \
             {} lost otherwise",
            self.sent, self.allowed, self.lost
        ));
        lines.push("agents at the start, at half-time and at the end:".to_owned());
        lines.extend(self.vitals.iter().map(lived));
        lines.extend(self.end.iter().cloned());
        lines.extend(
            self.faults
                .iter()
                .map(|fault| format!("WRONG: {}", brief(fault))),
        );
        lines.push(self.verdict());
        lines.join("\n")
    }

    fn runtimes(&self) -> String {
        let tally = &self.tally;
        let per_minute = tally.pods as f64 * 60.0 / self.took.as_secs_f64().max(1.0);
        format!(
            "{} pods came and went ({per_minute:.0} a minute): {} ADD, {} CHECK, {} DEL, {} GC; \
             {} plugins killed; longest until an ADD worked {:.2} s, a DEL {:.2} s",
            tally.pods,
            tally.add,
            tally.check,
            tally.del,
            tally.gc,
            tally.killed,
            tally.longest_add.as_secs_f64(),
            tally.longest_del.as_secs_f64(),
        )
    }

    fn verdict(&self) -> String {
        match self.faults.len() {
            0 => "soak: PASS: all was well".to_owned(),
            1 => "soak: FAIL: one thing was wrong, see above".to_owned(),
            n => format!("soak: FAIL: {n} things were wrong, see above"),
        }
    }
}

/// One agent's line.
fn lived([start, half, end]: &[Vitals; 3]) -> String {
    let history = if start.pid == end.pid {
        "never killed"
    } else {
        "another process since"
    };
    format!(
        "  {}: {:.1}, {:.1}, {:.1} MiB; {}, {}, {} descriptors; {} and {} devices; {} and {} files \
         ({history})",
        start.node,
        start.resident as f64 / 1024.0,
        half.resident as f64 / 1024.0,
        end.resident as f64 / 1024.0,
        start.descriptors,
        half.descriptors,
        end.descriptors,
        start.devices,
        end.devices,
        start.files,
        end.files,
    )
}

fn brief(fault: &str) -> String {
    match fault.char_indices().nth(TOLD) {
        Some((end, _)) => format!("{} [...]", &fault[..end]),
        None => fault.to_owned(),
    }
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_by_kind_and_keeps_the_longest_recovery() {
        let mut summary = Summary {
            seed: 7,
            took: Duration::from_secs(125),
            backend: "vxlan",
            ..Summary::default()
        };
        summary.happened(Kind::AgentKilled, Duration::from_millis(300));
        summary.happened(Kind::AgentKilled, Duration::from_millis(200));
        let text = summary.text();
        assert!(
            text.starts_with("soak: 2 min 05 s with SOAK_SEED=7; "),
            "{text}"
        );
        let line = text.lines().find(|line| line.contains("agent killed"));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(words, ["agent", "killed", "2", "0.30", "s"]);
        assert!(text.ends_with("soak: PASS: all was well"), "{text}");
    }

    #[test]
    fn whatever_was_wrong_is_told_and_decides() {
        let summary = Summary {
            faults: vec!["n1: it rains".to_owned()],
            ..Summary::default()
        };
        let text = summary.text();
        assert!(
            text.contains("\nWRONG: n1: it rains\nsoak: FAIL: one thing"),
            "{text}"
        );
        assert!(brief(&"ä".repeat(TOLD + 1)).ends_with("ä [...]"));
        assert_eq!(brief("short"), "short");
    }
}
