//! A consumer: its credit, and the leases that use it up.

use std::{cmp, collections::BTreeMap, mem};

use skein_proto::ids::Offset;

use super::{ConsumerId, Credit, GroupKey};
use crate::offsets::OffsetRange;

/// Leases of neighbours become one up to this many bytes. When part of one ends, the rest is counted as if all its
/// messages were of one size: so much may that be off.
const JOINED_BYTES_MAX: u64 = 64 << 10;

/// One consumer of one group.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) key: GroupKey,
    pub(super) credit: Credit,
    /// Those with a higher one take messages first.
    pub(super) priority: i32,
    /// Takes no more; is forgotten when its last lease ends.
    pub(super) detached: bool,
    /// It stands in its group's order of turns.
    pub(super) in_turn: bool,
    /// Who it was on an earlier stream, or with an earlier leader.
    pub(super) before: Option<ConsumerId>,
    leases: BTreeMap<Offset, Lease>,
    held_messages: u64,
    held_bytes: u64,
}

/// Consecutive messages that a consumer holds, delivered together or split off from such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) range: OffsetRange,
    pub(super) until_ms: u64,
    pub(super) attempt: u32,
    /// The share of these messages in the bytes of their delivery. Shares always add up to the whole.
    pub(super) bytes: u64,
}

impl Consumer {
    pub(super) const fn new(key: GroupKey, credit: Credit, priority: i32) -> Self {
        Self {
            key,
            credit,
            priority,
            detached: false,
            in_turn: false,
            before: None,
            leases: BTreeMap::new(),
            held_messages: 0,
            held_bytes: 0,
        }
    }

    /// Whether it could take a message that is small enough.
    pub(super) fn takes_more(&self) -> bool {
        !self.detached && self.messages_left() > 0 && (self.bytes_left() > 0 || self.leases.is_empty())
    }

    pub(super) fn messages_left(&self) -> u32 {
        let held = u32::try_from(self.held_messages).unwrap_or(u32::MAX);
        self.credit.messages.saturating_sub(held)
    }

    pub(super) const fn bytes_left(&self) -> u64 {
        self.credit.bytes.saturating_sub(self.held_bytes)
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.leases.is_empty()
    }

    /// The messages and bytes that count against its credit.
    pub(super) const fn held(&self) -> (u64, u64) {
        (self.held_messages, self.held_bytes)
    }

    /// What it holds, lowest first.
    pub(super) fn leases(&self) -> impl Iterator<Item = OffsetRange> {
        self.leases.values().map(|lease| lease.range)
    }

    pub(super) fn grant(&mut self, lease: Lease) {
        self.held_messages += lease.range.count;
        self.held_bytes += lease.bytes;
        self.leases.insert(lease.range.first, lease);
    }

    /// Grants a lease as part of the one right before it, where they end together and are small. False, and nothing is
    /// granted, when there is none such.
    pub(super) fn grant_behind(&mut self, lease: Lease) -> bool {
        let Some((_, before)) = self.leases.range_mut(..lease.range.first).next_back() else { return false };
        let joins = (before.range.end(), before.until_ms, before.attempt)
            == (lease.range.first, lease.until_ms, lease.attempt)
            && before.bytes.saturating_add(lease.bytes) <= JOINED_BYTES_MAX;
        if joins {
            before.range.count += lease.range.count;
            before.bytes += lease.bytes;
            self.held_messages += lease.range.count;
            self.held_bytes += lease.bytes;
        }
        joins
    }

    /// Ends the lease that begins at `first`.
    pub(super) fn end(&mut self, first: Offset) -> Option<Lease> {
        let lease = self.leases.remove(&first)?;
        self.held_messages -= lease.range.count;
        self.held_bytes -= lease.bytes;
        Some(lease)
    }

    /// Ends the lowest lease that has messages in `range`. A lease that reaches beyond is split: `ended` is the part
    /// inside, and `kept` what stays of it.
    pub(super) fn end_in(&mut self, range: OffsetRange) -> Option<EndedLease> {
        let straddling = self
            .leases
            .range(..=range.first)
            .next_back()
            .filter(|(_, lease)| lease.range.end() > range.first);
        let first = match straddling {
            Some((&first, _)) if !range.is_empty() => first,
            _ => *self.leases.range(range.first..cmp::max(range.first, range.end())).next()?.0,
        };
        let whole = self.end(first)?;
        let (before, rest) = whole.split_at(range.first);
        let (ended, after) = rest.split_at(range.end());
        let kept = [before, after].map(|part| (!part.range.is_empty()).then_some(part));
        for part in kept.into_iter().flatten() {
            self.grant(part);
        }
        Some(EndedLease { whole, ended, kept })
    }

    /// Ends all leases.
    pub(super) fn end_all(&mut self) -> impl Iterator<Item = Lease> {
        self.held_messages = 0;
        self.held_bytes = 0;
        mem::take(&mut self.leases).into_values()
    }
}

/// What [`Consumer::end_in`] did to a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndedLease {
    /// The lease as it was.
    pub(super) whole: Lease,
    /// The part that ended.
    pub(super) ended: Lease,
    /// The parts before and after it that go on.
    pub(super) kept: [Option<Lease>; 2],
}

impl Lease {
    /// The parts before and from `offset` on. The bytes are shared out by the number of messages.
    fn split_at(self, offset: Offset) -> (Self, Self) {
        let (before, after) = self.range.split_at(offset);
        let share = u128::from(self.bytes) * u128::from(before.count) / u128::from(self.range.count.max(1));
        let before_bytes = u64::try_from(share).expect("a share is at most the whole");
        (
            Self { range: before, bytes: before_bytes, ..self },
            Self { range: after, bytes: self.bytes - before_bytes, ..self },
        )
    }
}

#[cfg(test)]
mod tests {
    use skein_proto::ids::{GroupId, QueueId};

    use super::*;

    fn lease(first: u64, bytes: u64) -> Lease {
        Lease { range: OffsetRange::new(Offset::new(first), 1), until_ms: 30, attempt: 1, bytes }
    }

    #[test]
    fn neighbours_are_one_lease_until_that_is_large() {
        let key = GroupKey { queue: QueueId::new(1), group: GroupId::new(1) };
        let mut consumer = Consumer::new(key, Credit { messages: 10, bytes: 1 << 20 }, 0);
        assert!(!consumer.grant_behind(lease(4, 10)), "there is none before it");
        consumer.grant(lease(4, 10));
        for other in [
            lease(6, 10),
            Lease { until_ms: 31, ..lease(5, 10) },
            Lease { attempt: 2, ..lease(5, 10) },
            lease(5, JOINED_BYTES_MAX - 9),
        ] {
            assert!(!consumer.grant_behind(other), "{other:?}");
            assert_eq!(consumer.held(), (1, 10), "what is refused is not granted");
        }
        assert!(consumer.grant_behind(lease(5, JOINED_BYTES_MAX - 10)));
        assert_eq!(consumer.held(), (2, JOINED_BYTES_MAX));
        // Each of the two counts for half of their bytes then.
        let ended = consumer.end_in(OffsetRange::new(Offset::new(5), 1)).unwrap();
        assert_eq!((ended.ended.range.first, ended.ended.bytes), (Offset::new(5), JOINED_BYTES_MAX / 2));
        assert_eq!(consumer.held(), (1, JOINED_BYTES_MAX / 2));
    }
}
