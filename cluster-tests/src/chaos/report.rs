//! What a run did, and how long its publishers waited for confirms.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{AFTERMATH, Fault};
use crate::{
    checks::{Verdict, judge},
    history::{Moment, Outcome},
    recorder::Recorder,
};

/// One fault, and the one that happened with it, from before it was injected until the cluster was whole again; or a
/// while in which nothing happened.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// What happened, if anything did.
    pub fault: Option<Fault>,
    /// What happened as well.
    pub second: Option<Fault>,
    /// The queue whose leader was meant, by its place: whoever publishes to others may be hit in another way.
    pub queue: Option<usize>,
    /// When it began.
    pub begun: Moment,
    /// When all was well again.
    pub ended: Moment,
}

/// What runs did, added up.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What happened.
    pub events: Vec<Event>,
    /// Messages handed to producers.
    pub published: usize,
    /// Those that were confirmed.
    pub confirmed: usize,
    /// Those of which nobody knows.
    pub unknown: usize,
    /// Promises that were broken.
    pub violations: usize,
    /// Runs that broke off: of them nobody can say whether what is missing was yet to come.
    pub unjudged: usize,
    /// The longest wait between two confirms of the queue that was meant, during each fault that happened alone; of
    /// any queue, while nothing happened.
    pub waits: BTreeMap<Option<Fault>, Vec<Duration>>,
}

impl Report {
    /// Adds what was recorded, of a run that was judged or broke off before.
    pub(super) fn take_counts(&mut self, recorder: &Recorder, is_judged: bool) {
        self.unjudged += usize::from(!is_judged);
        recorder.with(|history| {
            self.published += history.publishes.len();
            self.confirmed += history.confirmed_count();
            let unknown = history.publishes.iter().filter(|call| matches!(call.outcome, Outcome::Unknown(_)));
            self.unknown += unknown.count();
            if is_judged && let Verdict::Violated(violations) = judge(history) {
                self.violations += violations.len();
            }
        });
    }

    /// Adds how long was waited, by when each probe's messages were confirmed.
    pub(super) fn take_waits(&mut self, confirmed: &[Vec<Moment>]) {
        let next_begun = self.events.iter().skip(1).map(|next| next.begun).chain([Moment::MAX]);
        let alone = self.events.iter().zip(next_begun).filter(|(event, _)| event.second.is_none());
        for (event, next_begun) in alone {
            let aftermath = if event.fault.is_some() { AFTERMATH } else { Duration::ZERO };
            // What happens in the next one is not the doing of this one.
            let until = next_begun.min(event.ended + aftermath);
            let is_meant = |(queue, _): &(usize, _)| event.queue.is_none_or(|meant| meant == *queue);
            let waits = confirmed.iter().enumerate().filter(is_meant);
            let waits = waits.map(|(_, moments)| longest_wait(moments, event.begun, until));
            self.waits.entry(event.fault).or_default().push(waits.max().unwrap_or_default());
        }
    }

    /// How many faults happened.
    #[must_use]
    pub fn fault_count(&self) -> usize {
        self.events.iter().filter(|event| event.fault.is_some()).count()
    }

    /// How often a fault happened alone.
    #[must_use]
    pub fn times(&self, fault: Fault) -> usize {
        self.waits.get(&Some(fault)).map_or(0, Vec::len)
    }

    /// Adds another run.
    pub fn add(&mut self, other: Self) {
        self.events.extend(other.events);
        self.published += other.published;
        self.confirmed += other.confirmed;
        self.unknown += other.unknown;
        self.violations += other.violations;
        self.unjudged += other.unjudged;
        for (fault, waits) in other.waits {
            self.waits.entry(fault).or_default().extend(waits);
        }
    }
}

/// The longest time without a confirm among these moments, which rise, while a fault had its effects.
fn longest_wait(confirms: &[Moment], from: Moment, to: Moment) -> Duration {
    let first = confirms.partition_point(|moment| *moment < from).saturating_sub(1);
    let meant = confirms[first..].iter().take_while(|moment| **moment <= to);
    let meant: Vec<_> = meant.collect();
    meant.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:>6} {:>10} {:>10} {:>10}",
            "fault", "times", "median ms", "p99 ms", "longest ms"
        )?;
        for (fault, waits) in &self.waits {
            let name = fault.map_or("calm", Fault::name);
            let mut waits = waits.clone();
            waits.sort_unstable();
            let at = |percent: usize| {
                let place = (waits.len() * percent).div_ceil(100).clamp(1, waits.len()) - 1;
                waits[place].as_millis()
            };
            let (times, median, p99, longest) = (waits.len(), at(50), at(99), at(100));
            writeln!(f, "{name:<18} {times:>6} {median:>10} {p99:>10} {longest:>10}")?;
        }
        let together = self.events.iter().filter(|event| event.second.is_some()).count();
        writeln!(f, "and {together} times two of them together")?;
        write!(
            f,
            "{} published, {} confirmed, {} of unknown outcome; {} promises broken",
            self.published, self.confirmed, self.unknown, self.violations
        )?;
        match self.unjudged {
            0 => Ok(()),
            count => write!(f, " as far as runs were judged; {count} broke off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_that_touch_the_fault() {
        let ms = Duration::from_millis;
        let confirms: Vec<_> = [0, 500, 510, 520, 900, 910, 10_000, 12_000].map(ms).into();
        assert_eq!(longest_wait(&confirms, ms(515), ms(3_905)), ms(380));
        // The wait that had begun before counts, and one that ends later does not.
        assert_eq!(longest_wait(&confirms, ms(100), ms(3_905)), ms(500));
        assert_eq!(longest_wait(&confirms, ms(515), ms(899)), ms(10));
        assert_eq!(longest_wait(&[], ms(515), ms(905)), Duration::ZERO);
    }
}
