//! What a queue keeps, and what it lets go of: what all groups have acked, and what its limits do not allow.

use super::{
    super::{
        Block, Overflow, Retention,
        group::{GiveUp, TakenBack},
        page::Sums,
    },
    Batch, GiveUpReason, Group, Offset, OffsetRange, Queue,
};
use crate::planted::{Bug, is_planted};

impl Queue {
    /// Whether it may keep a batch as well. Where the oldest messages make room there always is.
    pub(super) fn has_room(&self, batch: &Batch<'_>) -> bool {
        if self.settings.overflow == Overflow::DropOldest
            || self.has_no_limits()
            || is_planted(Bug::LimitIgnored)
        {
            return true;
        }
        let Sums { messages, bytes, .. } = self.counted();
        let fits =
            |kept: u64, more: u32, max: Option<u64>| max.is_none_or(|max| kept + u64::from(more) <= max);
        fits(messages, batch.count, self.settings.max_messages)
            && fits(bytes, batch.span.length, self.settings.max_bytes)
    }

    /// Whether anything is kept longer than it may be.
    pub(in crate::broker) fn is_trim_due(&self, now_ms: u64) -> bool {
        let are_ids_due = |window_ms: u64| self.ids.is_long_due(window_ms, now_ms);
        self.too_old(now_ms) > self.length_floor || self.settings.dedup_window_ms.is_some_and(are_ids_due)
    }

    /// Lets go of what is too old and what is too much.
    pub(in crate::broker) fn enforce_limits(&mut self, now_ms: u64) -> TakenBack {
        let floor = self.too_old(now_ms).max(self.too_much());
        if floor <= self.length_floor {
            return TakenBack::default();
        }
        let dropped = OffsetRange::between(self.length_floor, floor);
        self.length_floor = floor;
        let mut taken = TakenBack { dropped_below: Some(floor), ..TakenBack::default() };
        let (give_up, next_offset) = (self.give_up_rule(now_ms), self.next_offset);
        for group in self.groups.values_mut() {
            match self.settings.retention {
                Retention::Limits => group.drop_below(floor, next_offset),
                Retention::UntilAcked => {
                    taken.has_dead_letters = false;
                    group.give_up(dropped, GiveUpReason::Overflow, next_offset, give_up, &mut taken);
                    if taken.has_dead_letters {
                        taken.dead_letter_groups.push(group.id());
                    }
                }
            }
            self.changed_groups.insert(group.id());
        }
        if self.groups.is_empty() || self.settings.retention == Retention::Limits {
            // The next message that is kept, should there be a hole here.
            self.first_offset = self.next_kept(floor).unwrap_or(self.next_offset);
            self.length_floor = self.first_offset;
            self.blocks.drop_below(self.first_offset);
        } else {
            self.free_acked();
            self.free_holes([dropped]);
        }
        taken
    }

    /// Drops the dead letters that still wait, when there is no queue any more that they could be moved to.
    pub(super) fn drop_unmovable(&mut self) {
        if self.settings.dead_letter_queue.is_none() {
            for group in self.groups.values_mut().filter(|group| group.dead_letter_count() > 0) {
                group.drop_dead_letters(self.next_offset);
                self.changed_groups.insert(group.id());
            }
        }
    }

    pub(super) fn give_up_rule(&self, now_ms: u64) -> GiveUp {
        GiveUp {
            max_deliveries: self.settings.max_deliveries,
            has_dead_letter_queue: self.settings.dead_letter_queue.is_some(),
            now_ms,
        }
    }

    const fn has_no_limits(&self) -> bool {
        self.settings.max_messages.is_none() && self.settings.max_bytes.is_none()
    }

    /// What counts towards the limits.
    fn counted(&self) -> Sums {
        let mut counted = self.blocks.sums_from(self.length_floor);
        if let Some(block) = self.blocks.find(self.length_floor) {
            counted.messages -= self.length_floor.since(block.first);
        }
        counted
    }

    /// Everything below it is too old to be kept.
    fn too_old(&self, now_ms: u64) -> Offset {
        if self.settings.retention == Retention::Limits {
            // However long messages may wait for a consumer.
            let oldest_ms = |max_age_ms| now_ms.saturating_sub(max_age_ms).saturating_add(1);
            let max_age_ms = self.settings.max_age_ms;
            return max_age_ms.map_or(self.length_floor, |age_ms| self.published_from(oldest_ms(age_ms)));
        }
        // Groups give up for themselves what expires, unless somebody holds it.
        let Some(ttl_ms) = self.settings.message_ttl_ms.filter(|_| self.groups.is_empty()) else {
            return self.length_floor;
        };
        let is_expired = |block: &Block| {
            let expires_at_ms = block.properties.expires_at_ms(block.published_at_ms, Some(ttl_ms));
            expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
        };
        let expired = self.blocks.ending_after(self.length_floor).take_while(is_expired);
        expired.last().map_or(self.length_floor, |block| block.end())
    }

    /// Everything below it is more than may be kept. The newest block may be larger than the limit of bytes.
    fn too_much(&self) -> Offset {
        if self.settings.overflow == Overflow::RejectPublish || self.has_no_limits() {
            return self.length_floor;
        }
        let Sums { messages, bytes, .. } = self.counted();
        let over = |kept: u64, max: Option<u64>| max.map_or(0, |max| kept.saturating_sub(max));
        let mut messages = over(messages, self.settings.max_messages);
        let mut bytes = over(bytes, self.settings.max_bytes);
        let mut floor = self.length_floor;
        let newest_end = self.blocks.back().map_or(floor, |newest| newest.end);
        for block in self.blocks.ending_after(floor) {
            if bytes > 0 && block.end() < newest_end {
                messages = messages.saturating_sub(block.end().since(block.first.max(floor)));
                bytes = bytes.saturating_sub(block.span.length.into());
                floor = block.end();
                continue;
            }
            if messages > 0 {
                let first = block.first.max(floor);
                let gone = messages.min(block.end().since(first));
                messages -= gone;
                floor = first.plus(gone);
            }
            if messages == 0 {
                break;
            }
        }
        floor
    }

    /// Frees all that no group needs, which may be anywhere.
    pub(super) fn free_all_acked(&mut self) {
        self.free_acked();
        self.free_holes([OffsetRange::between(self.first_offset, self.next_offset)]);
    }

    /// Frees what lies below all groups' floors. Without groups everything is kept for the first one.
    pub(super) fn free_acked(&mut self) {
        if self.settings.retention == Retention::UntilAcked
            && let Some(floor) = self.groups.values().map(Group::acked_floor).min()
            && floor > self.first_offset
        {
            self.first_offset = floor;
            self.length_floor = self.length_floor.max(floor);
            self.blocks.drop_below(floor);
        }
    }

    /// Frees the blocks between others that all groups have acked, of those that these ranges touch.
    pub(super) fn free_holes(&mut self, acked: impl IntoIterator<Item = OffsetRange>) {
        if self.groups.is_empty() || self.settings.retention == Retention::Limits {
            return;
        }
        let kept = OffsetRange::between(self.first_offset, self.next_offset);
        // Mostly none is left, since acks come in order: what lies below all groups' floors is free already.
        let acked = acked.into_iter().map(|range| range.intersect(kept));
        let mut acked: Vec<_> = acked.filter(|range| !range.is_empty()).collect();
        acked.sort_unstable_by_key(|range| range.first);
        // Whole blocks, each once: acks of single messages come many to a block.
        let mut touched: Vec<OffsetRange> = Vec::new();
        for range in acked {
            let is_touched = touched.last().is_some_and(|last| range.end() <= last.end());
            if is_touched || self.groups.values().any(|group| group.acked_end() <= range.first) {
                continue;
            }
            let whole = self.whole_blocks(range);
            match touched.last_mut() {
                Some(last) if whole.first <= last.end() => {
                    *last = OffsetRange::between(last.first, whole.end());
                }
                _ => touched.push(whole),
            }
        }
        for range in touched {
            if self.groups.values().all(|group| group.has_acked(range)) {
                self.blocks.drop_inside(range);
                continue;
            }
            for free in self.free_blocks(range) {
                self.blocks.drop_inside(free);
            }
        }
    }

    /// The blocks in a range all of whose messages every group has acked; those that follow each other as one.
    fn free_blocks(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let mut free: Vec<OffsetRange> = Vec::new();
        let mut acked = self.acked_by_all(range).into_iter().peekable();
        for block in self.blocks.ending_after(range.first).take_while(|block| block.end() <= range.end()) {
            while acked.next_if(|part| part.end() < block.end()).is_some() {}
            let Some(part) = acked.peek() else { break };
            if part.first > block.first {
                continue;
            }
            match free.last_mut() {
                Some(last) if last.end() == block.first => last.count += u64::from(block.count),
                _ => free.push(OffsetRange::between(block.first, block.end())),
            }
        }
        free
    }

    /// The range, and whatever else is in the blocks that its ends are in.
    fn whole_blocks(&self, range: OffsetRange) -> OffsetRange {
        let first = self.blocks.find(range.first);
        // Most acks are within one block.
        let last = first.filter(|block| block.end() >= range.end());
        let last = last.or_else(|| self.blocks.find(Offset::new(range.end().get() - 1)));
        OffsetRange::between(
            first.map_or(range.first, |block| block.first),
            last.map_or(range.end(), |block| block.end()),
        )
    }

    /// The parts of `range` that every group has acked.
    fn acked_by_all(&self, range: OffsetRange) -> Vec<OffsetRange> {
        let mut parts = vec![range];
        for group in self.groups.values() {
            parts = parts.into_iter().flat_map(|part| group.acked_in(part)).collect();
            if parts.is_empty() {
                break;
            }
        }
        parts
    }
}
