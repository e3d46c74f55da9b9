//! Whether a datagram that was lost may have been: only while an event that cuts its way
//! was on.

use std::time::Duration;

use crate::event::Event;

/// Before an event begins, a datagram may be under way already.
const UNDER_WAY: Duration = Duration::from_millis(20);

/// A datagram that did not arrive. Times count from the beginning of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The node that it was sent from.
    pub from: usize,
    /// The node that it was sent to.
    pub to: usize,
    /// When it was sent.
    pub at: Duration,
}

/// When an event was on, from its beginning until all was seen to be well again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// What happened.
    pub event: Event,
    /// From when.
    pub begun: Duration,
    /// Until when.
    pub ended: Duration,
}

impl Window {
    fn allows(&self, loss: &Loss) -> bool {
        let on = loss.at + UNDER_WAY >= self.begun && loss.at <= self.ended;
        on && self.event.may_cut(loss.from, loss.to)
    }
}

/// Those that no window allows.
pub(crate) fn unexplained(losses: &[Loss], windows: &[Window]) -> Vec<Loss> {
    let explained = |loss: &&Loss| !windows.iter().any(|window| window.allows(loss));
    losses.iter().filter(explained).copied().collect()
}

/// What was lost in vain, in a few sentences: one for each way, with the first and last
/// moment and what was on then.
pub(crate) fn told(losses: &[Loss], windows: &[Window]) -> Vec<String> {
    let mut ways: Vec<(usize, usize)> = losses.iter().map(|loss| (loss.from, loss.to)).collect();
    ways.sort_unstable();
    ways.dedup();
    let of_way = |(from, to): (usize, usize)| {
        let lost = losses.iter().filter(move |l| (l.from, l.to) == (from, to));
        let times: Vec<Duration> = lost.map(|loss| loss.at).collect();
        let (first, last) = (times.iter().min()?, times.iter().max()?);
        let on = |w: &&Window| *first + UNDER_WAY >= w.begun && *first <= w.ended;
        let meanwhile = windows.iter().find(on).map_or_else(
            || "while nothing happened".to_owned(),
            |w| format!("during: {}", w.event),
        );
        Some(format!(
            "{} datagrams from n{} to n{} were lost between {:.2} s and {:.2} s, {meanwhile}",
            times.len(),
            from + 1,
            to + 1,
            first.as_secs_f64(),
            last.as_secs_f64(),
        ))
    };
    ways.into_iter().filter_map(of_way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Kind;

    fn window(kind: Kind) -> Window {
        Window {
            event: Event {
                kind,
                node: 1,
                other: 0,
                lasts: Duration::ZERO,
            },
            begun: Duration::from_secs(10),
            ended: Duration::from_secs(12),
        }
    }

    fn loss(from: usize, to: usize, at: u64) -> Loss {
        Loss {
            from,
            to,
            at: Duration::from_millis(at),
        }
    }

    #[test]
    fn a_loss_is_allowed_while_its_way_is_cut_and_at_no_other_time() {
        let windows = [window(Kind::UnderlayCut)];
        let allowed = [loss(1, 2, 9_990), loss(0, 1, 11_000), loss(1, 0, 12_000)];
        assert!(unexplained(&allowed, &windows).is_empty());
        let not = [
            loss(1, 2, 9_900),
            loss(1, 2, 12_001),
            loss(0, 2, 11_000),
            loss(1, 1, 11_000),
        ];
        assert_eq!(unexplained(&not, &windows), not);
        assert_eq!(unexplained(&allowed, &[window(Kind::AgentKilled)]), allowed);
        assert_eq!(unexplained(&allowed, &[]), allowed);
    }

    #[test]
    fn losses_are_told_by_way_with_what_was_on() {
        let lost = [loss(1, 2, 10_500), loss(1, 2, 11_000), loss(0, 2, 20_000)];
        let text = told(&lost, &[window(Kind::StoreKilled)]).join("\n");
        assert_eq!(
            text,
            "1 datagrams from n1 to n3 were lost between 20.00 s and 20.00 s, while nothing happened\n\
             2 datagrams from n2 to n3 were lost between 10.50 s and 11.00 s, during: etcd killed"
        );
    }
}
