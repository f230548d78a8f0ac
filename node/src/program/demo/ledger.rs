//! What was sent, confirmed and consumed, message by message.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::clock::Clock;

/// Shared by the publisher, the consumer and whoever looks on.
pub(super) struct Ledger {
    clock: Clock,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// By number.
    messages: Vec<Entry>,
    totals: Totals,
    last_confirm: Option<Duration>,
    /// The longest pause between two confirms since each kill, the newest last.
    gaps: Vec<Duration>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    confirmed: bool,
    /// Where it was first consumed.
    consumed_at: Option<u64>,
}

/// Sums over all messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub sent: u64,
    pub confirmed: u64,
    /// Distinct messages.
    pub consumed: u64,
    /// Confirmed and not consumed; final once nothing is on its way.
    pub lost: u64,
    /// Stored twice: consumed at two offsets.
    pub duplicated: u64,
    /// Delivered again from the same offset.
    pub redelivered: u64,
    pub last_gap: Option<Duration>,
}

impl Ledger {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, entries: Mutex::default() }
    }

    pub(super) fn sent(&self, number: u64) {
        let mut entries = self.lock();
        assert_eq!(entries.messages.len() as u64, number, "messages are numbered without gaps");
        entries.messages.push(Entry::default());
        entries.totals.sent += 1;
    }

    pub(super) fn confirmed(&self, number: u64) {
        let now = self.clock.monotonic();
        let mut entries = self.lock();
        let entry = &mut entries.messages[usize::try_from(number).expect("numbers are indexes")];
        entry.confirmed = true;
        let consumed = entry.consumed_at.is_some();
        entries.totals.confirmed += 1;
        entries.totals.lost += u64::from(!consumed);
        let pause = entries.last_confirm.map_or(Duration::ZERO, |last| now - last);
        entries.last_confirm = Some(now);
        if let Some(gap) = entries.gaps.last_mut() {
            *gap = pause.max(*gap);
        }
    }

    pub(super) fn consumed(&self, number: u64, offset: u64) {
        let mut entries = self.lock();
        let Some(entry) = usize::try_from(number).ok().and_then(|number| entries.messages.get_mut(number))
        else {
            return;
        };
        match entry.consumed_at {
            Some(first) if first == offset => entries.totals.redelivered += 1,
            Some(_) => entries.totals.duplicated += 1,
            None => {
                entry.consumed_at = Some(offset);
                let confirmed = entry.confirmed;
                entries.totals.consumed += 1;
                entries.totals.lost -= u64::from(confirmed);
            }
        }
    }

    /// A leader dies now: the pauses from here on are its doing.
    pub(super) fn mark_kill(&self) {
        self.lock().gaps.push(Duration::ZERO);
    }

    pub(super) fn totals(&self) -> Totals {
        let entries = self.lock();
        Totals { last_gap: entries.gaps.last().copied(), ..entries.totals }
    }

    pub(super) fn gaps(&self) -> Vec<Duration> {
        self.lock().gaps.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("counting does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fate_of_a_message_is_counted() {
        let ledger = Ledger::new(Clock::real());
        for number in 0..4 {
            ledger.sent(number);
        }
        // Message 0 arrives before its confirm, 1 after it and then again, 2 at two offsets, 3 never.
        ledger.consumed(0, 10);
        for number in 0..4 {
            ledger.confirmed(number);
        }
        ledger.consumed(1, 11);
        ledger.consumed(1, 11);
        ledger.consumed(2, 12);
        ledger.consumed(2, 22);
        let expected = Totals {
            sent: 4,
            confirmed: 4,
            consumed: 3,
            lost: 1,
            duplicated: 1,
            redelivered: 1,
            last_gap: None,
        };
        assert_eq!(ledger.totals(), expected);
    }
}
