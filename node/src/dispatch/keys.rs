//! What a group can deliver of messages with keys: of each key one at a time, in order.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use skein_proto::ids::Offset;

use crate::{
    offsets::OffsetRange,
    planted::{Bug, is_planted},
};

/// How many messages of a queue that is ordered by key are looked at ahead of those that are settled, unless they have
/// to be watched anyway for when they are due or expire. Should that many of a few keys wait, others wait behind them.
/// Each takes some 60 bytes.
pub(super) const LOOKAHEAD_MESSAGES_MAX: u64 = 100_000;

/// Messages in lines, one for each slot that keys fall into.
#[derive(Debug, Default)]
pub(super) struct KeyLines {
    messages: BTreeMap<Offset, Member>,
    /// None of them without messages.
    lines: BTreeMap<u16, Line>,
    /// The first of each line that nothing holds up, with its attempts.
    open: BTreeMap<Offset, u32>,
    waiting_count: u64,
}

/// A message of a line.
#[derive(Debug, Clone, Copy)]
struct Member {
    slot: u16,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// It waits, and was delivered so often.
    Waits { attempts: u32 },
    /// It holds up its line: with a consumer, on its way back from one, or held back after that.
    Out,
}

#[derive(Debug, Default)]
struct Line {
    /// Those that wait, in order.
    waiting: VecDeque<Offset>,
    out_count: u64,
}

impl KeyLines {
    /// How many messages wait in all lines.
    pub(super) const fn len(&self) -> u64 {
        self.waiting_count
    }

    /// What comes next, with its attempts.
    pub(super) fn first(&self) -> Option<(Offset, u32)> {
        self.open.first_key_value().map(|(&first, &attempts)| (first, attempts))
    }

    /// The messages of a range that wait, with their attempts.
    pub(super) fn overlapping(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, u32)> {
        self.messages.range(offsets(range)).filter_map(|(&offset, member)| match member.place {
            Place::Waits { attempts } => Some((offset, attempts)),
            Place::Out => None,
        })
    }

    /// The messages of a range that wait and could go now, with their attempts.
    pub(super) fn open_in(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, u32)> {
        self.open.range(offsets(range)).map(|(&offset, &attempts)| (offset, attempts))
    }

    /// Puts messages into their line, where they wait. Whichever of them held it up does so no more.
    pub(super) fn insert(&mut self, slot: u16, range: OffsetRange, attempts: u32) {
        for offset in each(range) {
            self.forget(offset);
            self.messages.insert(offset, Member { slot, place: Place::Waits { attempts } });
            self.waiting_count += 1;
            self.change_line(slot, |line| line.add(offset));
        }
    }

    /// Lets messages hold up their line, whether they wait there or not.
    pub(super) fn hold(&mut self, slot: u16, range: OffsetRange) {
        for offset in each(range) {
            if is_planted(Bug::KeyNotHeld) {
                self.forget(offset);
                continue;
            }
            match self.messages.insert(offset, Member { slot, place: Place::Out }).map(|was| was.place) {
                Some(Place::Out) => {}
                Some(Place::Waits { .. }) => {
                    self.waiting_count -= 1;
                    self.change_line(slot, |line| {
                        line.remove(offset);
                        line.out_count += 1;
                    });
                }
                None => self.change_line(slot, |line| line.out_count += 1),
            }
        }
    }

    /// Takes a waiting message out, which holds up its line from now on. False when it does not wait.
    pub(super) fn take(&mut self, offset: Offset) -> bool {
        let member = self.messages.get(&offset);
        let Some(&Member { slot, place: Place::Waits { .. } }) = member else { return false };
        self.hold(slot, OffsetRange::new(offset, 1));
        true
    }

    /// The messages of a range that hold up their lines do so no more: they are done.
    pub(super) fn finish(&mut self, range: OffsetRange) {
        self.forget_those(range, |place| matches!(place, Place::Out));
    }

    /// Takes out the messages of a range that wait.
    pub(super) fn remove(&mut self, range: OffsetRange) {
        self.forget_those(range, |place| matches!(place, Place::Waits { .. }));
    }

    fn forget_those(&mut self, range: OffsetRange, is_meant: impl Fn(Place) -> bool) {
        let members = self.messages.range(offsets(range));
        let meant: Vec<_> =
            members.filter(|(_, member)| is_meant(member.place)).map(|(&offset, _)| offset).collect();
        meant.into_iter().for_each(|offset| self.forget(offset));
    }

    /// Takes a message out of its line, if it is in one.
    fn forget(&mut self, offset: Offset) {
        let Some(Member { slot, place }) = self.messages.remove(&offset) else { return };
        match place {
            Place::Waits { .. } => {
                self.waiting_count -= 1;
                self.change_line(slot, |line| line.remove(offset));
            }
            Place::Out => self.change_line(slot, |line| line.out_count -= 1),
        }
    }

    /// Changes a line, and with it which of its messages may go.
    fn change_line(&mut self, slot: u16, change: impl FnOnce(&mut Line)) {
        let mut entry = match self.lines.entry(slot) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert_entry(Line::default()),
        };
        let line = entry.get_mut();
        let before = line.open();
        change(line);
        let after = line.open();
        if line.is_empty() {
            entry.remove();
        }
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.open.remove(&before);
        }
        if let Some(after) = after
            && let Some(&Member { place: Place::Waits { attempts }, .. }) = self.messages.get(&after)
        {
            self.open.insert(after, attempts);
        }
    }
}

impl Line {
    /// The message that may go.
    fn open(&self) -> Option<Offset> {
        self.waiting.front().copied().filter(|_| self.out_count == 0)
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.out_count == 0
    }

    /// Mostly at the end; one that comes back mostly at the front.
    fn add(&mut self, offset: Offset) {
        let place = self.waiting.partition_point(|other| *other < offset);
        self.waiting.insert(place, offset);
    }

    fn remove(&mut self, offset: Offset) {
        if let Ok(place) = self.waiting.binary_search(&offset) {
            self.waiting.remove(place);
        }
    }
}

fn offsets(range: OffsetRange) -> std::ops::Range<Offset> {
    range.first..range.end().max(range.first)
}

fn each(range: OffsetRange) -> impl Iterator<Item = Offset> {
    (0..range.count).map(move |n| range.first.plus(n))
}
