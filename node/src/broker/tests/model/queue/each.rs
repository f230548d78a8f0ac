//! Batches whose messages are looked at one by one.

use std::collections::BTreeSet;

use super::*;
use crate::broker::{EachMessage, Routed};

impl ModelQueue {
    pub(super) fn publish_each(
        &mut self,
        (producer, partitions): (Option<(ProducerId, Sequence)>, u32),
        routed: Option<Routed>,
        span: BlockSpan,
        messages: &[EachMessage],
        at: (u64, u64),
    ) -> Outcome {
        let first_offset = Offset::new(self.messages.len() as u64);
        self.forget_ids(at.1);
        let stored = match routed {
            Some(routed) => match self.stored_places(producer, routed) {
                Ok(stored) => stored,
                Err(outcome) => return outcome,
            },
            None => match self.not_next(producer) {
                Some(outcome) => return outcome,
                None => BTreeSet::new(),
            },
        };
        if messages.iter().all(|message| stored.contains(&message.place)) {
            return Outcome::Published { first_offset, count: 0, duplicate: true };
        }
        if ![0, self.settings.partitions].contains(&partitions) {
            return Outcome::PartitionsChanged;
        }
        let mut ids = self.recent_ids(at.1);
        let before = ids.clone();
        let is_new: Vec<_> = messages
            .iter()
            .map(|message| {
                let is_missing = !stored.contains(&message.place);
                let id = message.id.filter(|_| self.settings.dedup_window_ms.is_some());
                is_missing && id.is_none_or(|id| ids.insert(id))
            })
            .collect();
        let new = || messages.iter().zip(&is_new).filter(|(_, is_new)| **is_new).map(|(message, _)| message);
        let (count, bytes) = (new().count(), new().map(|message| u64::from(message.length)).sum());
        if count > 0 && !self.has_room(count as u64, bytes) {
            return Outcome::QueueFull;
        }
        for id in ids.difference(&before) {
            self.ids.insert(*id, at.1);
        }
        if let Some((id, sequence)) = producer {
            if routed.is_some() {
                let places = messages.iter().map(|message| message.place);
                self.routed.entry(id).or_default().entry(sequence).or_default().extend(places);
            } else {
                self.producers.entry(id).or_default().push((first_offset, messages.len() as u32));
            }
        }
        if count > 0 || routed.is_none() {
            self.append_each(span, messages, &is_new, routed.is_none(), at);
        }
        let told = if routed.is_some() { count } else { messages.len() };
        Outcome::Published { first_offset, count: told as u32, duplicate: count == 0 }
    }

    /// The places of the batch that came here before, or why nothing of it is stored.
    fn stored_places(
        &mut self,
        producer: Option<(ProducerId, Sequence)>,
        routed: Routed,
    ) -> Result<BTreeSet<u32>, Outcome> {
        let Some((id, sequence)) = producer else { return Ok(BTreeSet::new()) };
        let batches = self.routed.entry(id).or_default();
        match (batches.get(&sequence), routed.follows) {
            (Some(places), _) => Ok(places.clone()),
            (None, Some(expected)) if !batches.contains_key(&expected) => {
                Err(Outcome::SequenceGap { expected })
            }
            _ => Ok(BTreeSet::new()),
        }
    }

    /// Those that the window covers now. What it does not cover is forgotten, should it become longer again.
    fn recent_ids(&mut self, now_ms: u64) -> BTreeSet<IdHash> {
        self.forget_ids(now_ms);
        self.ids.keys().copied().collect()
    }

    pub(super) fn forget_ids(&mut self, now_ms: u64) {
        let window_ms = self.settings.dedup_window_ms.unwrap_or_default();
        self.ids.retain(|_, at_ms| *at_ms + window_ms > now_ms);
    }

    /// Appends those that are new; with a hole for each of the others, or without.
    fn append_each(
        &mut self,
        span: BlockSpan,
        messages: &[EachMessage],
        is_new: &[bool],
        with_holes: bool,
        at: (u64, u64),
    ) {
        let mut position = span.position;
        let mut spans: Vec<(u32, BatchRun)> = Vec::new();
        let mut holes = Vec::new();
        let mut next = self.messages.len();
        for (message, is_new) in messages.iter().zip(is_new) {
            let EachMessage { length, properties, delay_ms, .. } = *message;
            let start = position;
            position += length;
            if !is_new {
                if with_holes {
                    holes.push(next);
                    next += 1;
                }
                continue;
            }
            next += 1;
            match spans.last_mut() {
                Some((first, run))
                    if *first + run.length == start
                        && (run.properties, run.delay_ms) == (properties, delay_ms) =>
                {
                    run.count += 1;
                    run.length += length;
                }
                _ => spans.push((start, BatchRun { count: 1, length, properties, delay_ms })),
            }
        }
        self.append_with_holes(&spans, &holes, at);
    }
}
