//! The dispatcher against a model that knows the state of each message, and one scenario for each promise.

mod groups;
mod keys;
mod model;
mod scenarios;

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{GroupId, Offset, QueueId};

use self::model::Model;
use super::{
    AddConsumerError, Claim, ConsumerId, Credit, Delivery, Dispatcher, Expired, GroupCounts, GroupKey,
    GroupStart, Now, Ready, Refusal, Returned, Rules, Stored, Waiting,
};
use crate::offsets::{OffsetRange, OffsetRuns, OffsetSet};

const QUEUE: QueueId = QueueId::new(1);
const LEASE_MS: u32 = 50;
const RULES: Rules = Rules { lease_ms: LEASE_MS, single_active: false, lower_percent: 0, by_key: false };

/// Messages per stored block.
const BLOCK: u64 = 5;

/// Messages of different sizes, the same for every queue; those below `first` are not kept.
struct TestStored {
    first: u64,
    /// These wait to be moved to another queue.
    given_up: OffsetRange,
    /// Some wait for something.
    special: bool,
}

impl TestStored {
    const fn size(offset: u64) -> u64 {
        1 + offset * 7 % 13
    }

    /// What a message waits for.
    fn waits(&self, offset: u64) -> Waiting {
        let key_slot = (offset / 2 % 4) as u16;
        let ordinary = Waiting { key_slot, ..Waiting::ordinary(range_of(offset, 1)) };
        if !self.special {
            return ordinary;
        }
        Waiting {
            deliver_at_ms: if offset % 5 == 1 { 10 + 3 * offset } else { 0 },
            expires_at_ms: (offset % 4 == 3).then_some(40 + 2 * offset),
            priority: (offset / 3 % 3) as u8,
            ..ordinary
        }
    }
}

impl Stored for TestStored {
    fn fit(&self, _queue: QueueId, first: Offset, count_max: u32, bytes_max: u64) -> Option<(u32, u64)> {
        let first = first.get();
        if first < self.first {
            return None;
        }
        let block_end = (first / BLOCK + 1) * BLOCK;
        let (mut count, mut bytes) = (1, Self::size(first));
        while count < count_max
            && first + u64::from(count) < block_end
            && bytes + Self::size(first + u64::from(count)) <= bytes_max
        {
            bytes += Self::size(first + u64::from(count));
            count += 1;
        }
        Some((count, bytes))
    }

    fn kept_from(&self, _queue: QueueId) -> Option<Offset> {
        Some(Offset::new(self.first))
    }

    fn open_in(&self, _key: GroupKey, range: OffsetRange) -> OffsetSet {
        let mut open = OffsetSet::from_iter([range]);
        open.remove(range_of(0, self.first));
        open.remove(self.given_up);
        open
    }

    fn is_ordinary(&self, _queue: QueueId) -> bool {
        !self.special
    }

    fn visit_waiting(&self, _queue: QueueId, from: Offset, visit: &mut dyn FnMut(Waiting) -> bool) {
        let mut offset = from.get().max(self.first);
        while visit(self.waits(offset)) {
            offset += 1;
        }
    }
}

const fn key(group: u32) -> GroupKey {
    GroupKey { queue: QUEUE, group: GroupId::new(group) }
}

fn range_of(first: u64, count: u64) -> OffsetRange {
    OffsetRange::new(Offset::new(first), count)
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Append(u64),
    Purge(u64),
    /// Slots stand for consumers, which come and go.
    Add(usize, Credit),
    SetCredit(usize, Credit),
    Detach(usize),
    /// It has seen the range of what it holds.
    Leave(usize, OffsetRange),
    Remove(usize),
    Ack(usize, OffsetRange),
    Nack(usize, OffsetRange),
    Extend(usize, OffsetRange, u64),
    Wait(u64),
    /// Somebody sets the clock forward.
    SetClock(u64),
    /// The core takes back what is on its way within the range; the delay counts from now.
    TakeBack(OffsetRange, Option<u64>),
    /// The core gives up what is on its way within the range.
    GiveUp(OffsetRange),
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..6_usize;
    let range = || (0..60_u64, 1..15_u64).prop_map(|(first, count)| range_of(first, count));
    let credit = || (0..12_u32, 0..60_u64).prop_map(|(messages, bytes)| Credit { messages, bytes });
    prop_oneof![
        3 => (1..12_u64).prop_map(Step::Append),
        1 => (0..4_u64).prop_map(Step::Purge),
        4 => (slot(), credit()).prop_map(|(slot, credit)| Step::Add(slot, credit)),
        2 => (slot(), credit()).prop_map(|(slot, credit)| Step::SetCredit(slot, credit)),
        1 => slot().prop_map(Step::Detach),
        2 => (slot(), range()).prop_map(|(slot, seen)| Step::Leave(slot, seen)),
        1 => slot().prop_map(Step::Remove),
        5 => (slot(), range()).prop_map(|(slot, range)| Step::Ack(slot, range)),
        2 => (slot(), range()).prop_map(|(slot, range)| Step::Nack(slot, range)),
        2 => (slot(), range(), 0..90_u64).prop_map(|(slot, range, ms)| Step::Extend(slot, range, ms)),
        3 => (0..40_u64).prop_map(Step::Wait),
        1 => (0..200_u64).prop_map(Step::SetClock),
        4 => (range(), prop::option::of(0..60_u64)).prop_map(|(range, delay)| Step::TakeBack(range, delay)),
        1 => range().prop_map(Step::GiveUp),
        6 => Just(Step::Poll),
    ]
}

proptest! {
    #[test]
    fn dispatcher_matches_a_naive_model(
        special in any::<bool>(),
        lower_percent in prop_oneof![Just(0), 0..=50_u32],
        by_key in any::<bool>(),
        steps in vec(step(), 1..80),
    ) {
        let mut model = Model::new(special, Rules { lower_percent, by_key, ..RULES });
        for step in steps {
            model.step(step);
        }
        model.settle_everything();
    }
}
