//! The state of a shard that carries messages.

mod saved;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use super::{
    BlockSlice, Command, EntryMeta, Event, Live, LivePart, Outcome, Position, PublishPart, PublishedBatch,
    Queue, RecordKey, Returned, Settings,
    closed_queues::ClosedQueues,
    group::TakenBack,
    live::LiveTally,
    queue::{Batch, Each, Settlement},
};

/// The most that an entry adds to the elapsed time. A leader whose clock is far ahead thus costs producers a minute of
/// patience, and not their memory; a shard without entries for longer than this forgets the later.
const ELAPSED_PER_ENTRY_MAX_MS: u64 = 60_000;

/// Queues, groups and producers, as the entries of one log make them.
#[derive(Debug, Default)]
pub struct Shard {
    /// The highest leader time seen: what counts as now.
    time_ms: u64,
    /// How much time has passed, as far as one can believe the leaders: what idleness is measured by.
    elapsed_ms: u64,
    replicated_index: u64,
    /// Ids are not used again: whoever opens one of these has not heard that the queue was deleted.
    closed_queues: ClosedQueues,
    /// Boxed, since a tree that is added to at its end has almost as much room as it uses.
    queues: BTreeMap<QueueId, Box<Queue>>,
    /// The queues that let go of messages in time, or go themselves. Follows from `queues`.
    aging_queues: BTreeSet<QueueId>,
    observer: Option<Observed>,
    /// Queues that changed since the last checkpoint.
    changed_queues: BTreeSet<QueueId>,
    /// Records of queues that were forgotten since the last checkpoint.
    gone: BTreeSet<RecordKey>,
    head_changed: bool,
}

/// What happened since the dispatcher last asked. It asks after every entry, whose commands bound it.
#[derive(Debug, Default)]
struct Observed {
    events: Vec<Event>,
    appended: BTreeMap<QueueId, Offset>,
}

impl Shard {
    /// A shard without queues.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one entry: one outcome for each command, in order. Entries are applied in the order of the log.
    pub fn apply(&mut self, entry: EntryMeta, commands: &[Command]) -> Vec<Outcome> {
        let passed_ms = entry.leader_time_ms.saturating_sub(self.time_ms);
        self.elapsed_ms = self.elapsed_ms.saturating_add(passed_ms.min(ELAPSED_PER_ENTRY_MAX_MS));
        self.time_ms = self.time_ms.max(entry.leader_time_ms);
        self.replicated_index = self.replicated_index.max(entry.replicated_index);
        self.head_changed = true;
        commands.iter().map(|command| self.apply_command(entry.index, command)).collect()
    }

    /// The queue with this id.
    #[must_use]
    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id).map(Box::as_ref)
    }

    /// All queues, by id.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values().map(Box::as_ref)
    }

    /// Where the message at `first` is stored, with up to `count_max` messages of the same block. Nothing when there is
    /// no such queue, the message is not kept, or `count_max` is 0.
    #[must_use]
    pub fn locate(&self, queue: QueueId, first: Offset, count_max: u32) -> Option<BlockSlice> {
        self.queue(queue)?.locate(first, count_max)
    }

    /// The queues that age: that let go of messages in time, or that go themselves when nobody uses them.
    pub fn aging_queues(&self) -> impl Iterator<Item = &Queue> {
        self.aging_queues.iter().filter_map(|id| self.queue(*id))
    }

    /// The queues that keep something for longer than they may.
    pub fn trims_due(&self, now_ms: u64) -> impl Iterator<Item = QueueId> {
        let aging = self.aging_queues.iter().copied();
        aging.filter(move |id| self.queues.get(id).is_some_and(|queue| queue.is_trim_due(now_ms)))
    }

    /// The parts of these entries that some group may still need, by rising index and position.
    #[must_use]
    pub fn live_parts(&self, entries: Range<u64>) -> Vec<LivePart> {
        let mut parts: Vec<_> = self.queues().flat_map(|queue| queue.live_parts(entries.clone())).collect();
        parts.sort_unstable();
        parts
    }

    /// How much of each of these ranges of entries some group may still need, in their order. The ranges may overlap.
    /// Looks at every page of blocks, but only into those that lie on a range's border.
    #[must_use]
    pub fn live_in(&self, ranges: &[Range<u64>]) -> Vec<Live> {
        let mut tally = LiveTally::new(ranges);
        for queue in self.queues.values() {
            queue.tally_live(&mut tally);
        }
        tally.answer(ranges)
    }

    /// The lowest raft index from `from` on whose entry some group may still need. Asks every queue.
    #[must_use]
    pub fn next_live_index(&self, from: u64) -> Option<u64> {
        let next_of = |queue: &Queue| queue.live_parts(from..u64::MAX).next();
        self.queues().filter_map(next_of).map(|part| part.index).min()
    }

    /// The highest index that is known to be on the disks of all replicas.
    #[must_use]
    pub const fn replicated_index(&self) -> u64 {
        self.replicated_index
    }

    /// The core's time: the highest leader time seen, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Starts or stops collecting events. What was collected before is dropped.
    pub fn observe(&mut self, on: bool) {
        self.observer = on.then(Observed::default);
    }

    /// What happened since the last call. An observer asks after each entry, so that events do not pile up.
    pub fn take_events(&mut self) -> Vec<Event> {
        let Some(observer) = &mut self.observer else {
            return Vec::new();
        };
        let Observed { mut events, appended } = std::mem::take(observer);
        events
            .extend(appended.into_iter().map(|(queue, next_offset)| Event::Appended { queue, next_offset }));
        events
    }

    fn apply_command(&mut self, index: u64, command: &Command) -> Outcome {
        match command {
            Command::OpenQueue { queue, name, settings, revision } => {
                self.open_queue(*queue, name, settings, *revision)
            }
            Command::CloseQueue { queue } => self.close_queue(*queue),
            Command::PurgeQueue { queue } => self.purge_queue(*queue),
            Command::Publish { queue, producer, count, block, runs, partitions } => {
                let Self { time_ms, elapsed_ms, .. } = *self;
                let batch = Batch { index, time_ms, elapsed_ms, span: *block, count: *count, runs };
                self.append(*queue, batch, |queue| queue.publish(*producer, *partitions, batch))
            }
            Command::PublishEach { queue, producer, block, messages, routed, partitions } => {
                let Self { time_ms, elapsed_ms, .. } = *self;
                let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
                let batch = Batch { index, time_ms, elapsed_ms, span: *block, count, runs: &[] };
                let (producer, routed, partitions) = (*producer, *routed, *partitions);
                let each = Each { producer, routed, messages, partitions };
                self.append(*queue, batch, |queue| queue.publish_each(each, batch))
            }
            Command::PublishTogether { producer, parts } => self.publish_together(index, *producer, parts),
            Command::CreateGroup { queue, name, start, filter } => {
                self.create_group(*queue, name, *start, filter)
            }
            Command::UpdateGroup { queue, group, filter } => match self.change_queue(*queue) {
                Some(queue) => queue.update_group(*group, filter),
                None => Outcome::QueueNotFound,
            },
            Command::SeekGroup { queue, group, to } => self.seek_group(*queue, *group, *to),
            Command::DeleteGroup { queue, group } => self.delete_group(*queue, *group),
            Command::Settle { queue, group, acks, returns, expired, seek_count } => {
                let settlement = Settlement { acks, returns, expired, seek_count: *seek_count };
                self.settle(*queue, *group, settlement)
            }
            Command::Trim { queue } => self.trim(*queue),
            Command::DeadLettersMoved { queue, group, up_to } => match self.change_queue(*queue) {
                Some(queue) => queue.dead_letters_moved(*group, *up_to),
                None => Outcome::QueueNotFound,
            },
        }
    }

    fn open_queue(&mut self, id: QueueId, name: &str, settings: &Settings, revision: u64) -> Outcome {
        if self.closed_queues.contains(id) {
            return Outcome::QueueNotFound;
        }
        let time_ms = self.time_ms;
        match self.change_queue(id) {
            Some(queue) => {
                let taken = queue.reopen(name, settings, revision, time_ms);
                self.note_dropped(id, taken);
            }
            None => {
                let queue = Queue::new(id, name.to_owned(), settings.clone(), revision, time_ms);
                self.queues.insert(id, Box::new(queue));
                self.changed_queues.insert(id);
            }
        }
        self.note_aging(id);
        self.note(Event::QueueOpened { queue: id });
        Outcome::Opened
    }

    fn close_queue(&mut self, id: QueueId) -> Outcome {
        // Also when it is not open: the command to open it may come late.
        self.closed_queues.insert(id);
        let Some(queue) = self.queues.remove(&id) else {
            return Outcome::QueueNotFound;
        };
        self.gone.extend(queue.saved_keys());
        self.changed_queues.remove(&id);
        self.aging_queues.remove(&id);
        self.note(Event::QueueClosed { queue: id });
        Outcome::Closed
    }

    fn purge_queue(&mut self, id: QueueId) -> Outcome {
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let messages = queue.purge();
        let below = queue.first_offset();
        self.note(Event::Purged { queue: id, below });
        Outcome::Purged { messages }
    }

    fn trim(&mut self, id: QueueId) -> Outcome {
        let time_ms = self.time_ms;
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        queue.forget_ids(time_ms);
        let taken = queue.enforce_limits(time_ms);
        self.note_dropped(id, taken);
        Outcome::Trimmed
    }

    /// Lets each of several queues take its batch, when all of them would.
    fn publish_together(
        &mut self,
        index: u64,
        producer: Option<(ProducerId, Sequence)>,
        parts: &[PublishPart],
    ) -> Outcome {
        let at = (index, self.time_ms, self.elapsed_ms);
        let mut known = Vec::with_capacity(parts.len());
        for (place, part) in parts.iter().enumerate() {
            let checked = match self.change_queue(part.queue) {
                Some(queue) => queue.check_publish(producer, &batch_of(part, at)),
                None => Err(Outcome::QueueNotFound),
            };
            match checked {
                Ok(before) => known.push(before),
                Err(because) => return Outcome::RefusedTogether { place, because: Box::new(because) },
            }
        }
        if known.iter().any(Option::is_some) {
            let forgotten = known.iter().position(Option::is_none);
            return match forgotten {
                None => {
                    let batches = known.into_iter().flatten().collect();
                    Outcome::PublishedTogether { batches, duplicate: true }
                }
                // It had it and has forgotten, or never had it, as when the sequence was used for the others alone.
                Some(place) => Outcome::RefusedTogether { place, because: Box::new(Outcome::SequenceTooOld) },
            };
        }
        let mut batches = Vec::with_capacity(parts.len());
        for part in parts {
            let batch = batch_of(part, at);
            let outcome = self.append(part.queue, batch, |queue| queue.publish(producer, 0, batch));
            let Outcome::Published { first_offset: first, count, .. } = outcome else {
                unreachable!("a queue took a batch back that it had found good: {outcome:?}");
            };
            batches.push(PublishedBatch { first, count });
        }
        Outcome::PublishedTogether { batches, duplicate: false }
    }

    /// Lets a queue take a batch, and then keep to its limits.
    fn append(&mut self, id: QueueId, batch: Batch<'_>, take: impl FnOnce(&mut Queue) -> Outcome) -> Outcome {
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let before = queue.next_offset();
        let outcome = take(queue);
        let next_offset = queue.next_offset();
        if next_offset != before || matches!(outcome, Outcome::Published { duplicate: false, .. }) {
            let taken = queue.enforce_limits(batch.time_ms);
            self.note_dropped(id, taken);
            if let Some(observer) = &mut self.observer {
                observer.appended.insert(id, next_offset);
            }
        }
        outcome
    }

    fn create_group(&mut self, id: QueueId, name: &str, start: Position, filter: &[u8]) -> Outcome {
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let outcome = queue.create_group(name, start, filter);
        if let Outcome::GroupCreated { group, created: true } = outcome {
            self.note(Event::GroupCreated { queue: id, group });
        }
        outcome
    }

    fn delete_group(&mut self, id: QueueId, group: GroupId) -> Outcome {
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let outcome = queue.delete_group(group);
        if outcome == Outcome::GroupDeleted {
            self.note(Event::GroupDeleted { queue: id, group });
        }
        outcome
    }

    fn seek_group(&mut self, id: QueueId, group: GroupId, to: Position) -> Outcome {
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let outcome = queue.seek_group(group, to);
        if let Outcome::GroupMoved { .. } = outcome {
            self.note(Event::GroupMoved { queue: id, group });
        }
        outcome
    }

    fn settle(&mut self, id: QueueId, group: GroupId, settlement: Settlement<'_>) -> Outcome {
        let time_ms = self.time_ms;
        let Some(queue) = self.change_queue(id) else {
            return Outcome::QueueNotFound;
        };
        let Some(taken_back) = queue.settle(group, settlement, time_ms) else {
            return Outcome::GroupNotFound;
        };
        for (range, returned) in taken_back.redeliver {
            let Returned { attempts, not_before_ms } = returned;
            self.note(Event::Returned { queue: id, group, range, attempts, not_before_ms });
        }
        for range in taken_back.given_up {
            self.note(Event::GivenUp { queue: id, group, range });
        }
        if taken_back.has_dead_letters {
            self.note(Event::DeadLettersPending { queue: id, group });
        }
        Outcome::Settled
    }

    /// Takes note of what a queue let go of because of its limits.
    fn note_dropped(&mut self, id: QueueId, taken: TakenBack) {
        if let Some(below) = taken.dropped_below {
            self.note(Event::Purged { queue: id, below });
        }
        for group in taken.dead_letter_groups {
            self.note(Event::DeadLettersPending { queue: id, group });
        }
    }

    fn note_aging(&mut self, id: QueueId) {
        let settings = self.queue(id).map(Queue::settings);
        let ages = |settings: &Settings| {
            let Settings { max_age_ms, message_ttl_ms, expires_ms, dedup_window_ms, .. } = settings;
            max_age_ms.or(*message_ttl_ms).or(*expires_ms).or(*dedup_window_ms).is_some()
        };
        if settings.is_some_and(ages) {
            self.aging_queues.insert(id);
        } else {
            self.aging_queues.remove(&id);
        }
    }

    /// The queue, which is about to change.
    fn change_queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(&id)?;
        self.changed_queues.insert(id);
        Some(queue)
    }

    fn note(&mut self, event: Event) {
        if let Some(observer) = &mut self.observer {
            observer.events.push(event);
        }
    }
}

fn batch_of(part: &PublishPart, (index, time_ms, elapsed_ms): (u64, u64, u64)) -> Batch<'_> {
    let PublishPart { block: span, count, runs, .. } = part;
    Batch { index, time_ms, elapsed_ms, span: *span, count: *count, runs }
}
