//! The body of a raft entry: the commands that a leader gathered, each batch of messages once.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use prost::{Message as _, encoding};
use skein_proto::{
    ids::{GroupId, Offset, ProducerId, QueueId, Sequence},
    storage::{self as wire, command::Command as WireCommand},
};

use super::{
    DecodeError, catalog, range_from_wire, range_to_wire, required_range,
    settings::{properties_from_wire, properties_to_wire, settings_from_wire, settings_to_wire},
};
use crate::broker::{
    BatchRun, BlockSpan, CatalogCommand, Command, EachMessage, EntryMeta, IdHash, Position, PublishPart,
    Return, Routed,
};

/// The tags of `EntryBody`'s fields. An entry is written field by field, since commands come encoded one by one.
mod tag {
    pub(super) const LEADER_TIME_MS: u32 = 1;
    pub(super) const REPLICATED_INDEX: u32 = 2;
    pub(super) const COMMANDS: u32 = 3;
}

/// What an entry says about itself, besides its commands. Its index is known to the log, not to the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    /// The leader's wall clock when it was proposed.
    pub leader_time_ms: u64,
    /// Every replica had the log up to this index on disk when it was proposed.
    pub replicated_index: u64,
}

/// A command that waits to be proposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed(wire::Command);

/// An entry as it comes out of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedEntry {
    /// What it says about itself.
    pub head: EntryHead,
    /// What it changes.
    pub commands: Commands,
}

/// The commands of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commands {
    /// For a shard with messages. Also what an entry without commands has.
    Shard(Vec<Command>),
    /// For the catalog.
    Catalog(Vec<CatalogCommand>),
}

impl EntryHead {
    /// The same, of the entry that the log has at `index`.
    #[must_use]
    pub const fn at(self, index: u64) -> EntryMeta {
        let Self { leader_time_ms, replicated_index } = self;
        EntryMeta { index, leader_time_ms, replicated_index }
    }
}

impl Proposed {
    /// A batch of messages for a queue.
    #[must_use]
    pub fn publish(
        queue: QueueId,
        producer: Option<(ProducerId, Sequence)>,
        count: u32,
        batch: Bytes,
        runs: &[BatchRun],
        partitions: u32,
    ) -> Self {
        let runs = runs.iter().copied().map(run_to_wire).collect();
        let producer = producer
            .map(|(id, sequence)| wire::ProducerBatch { producer_id: id.get(), sequence: sequence.get() });
        let queue_id = queue.get();
        Self::of(WireCommand::Publish(wire::Publish { queue_id, producer, count, batch, runs, partitions }))
    }

    /// A batch whose messages are looked at one by one: these, and just these.
    #[must_use]
    pub fn publish_each(
        queue: QueueId,
        producer: Option<(ProducerId, Sequence)>,
        batch: Bytes,
        messages: &[EachMessage],
        routed: Option<Routed>,
        partitions: u32,
    ) -> Self {
        let producer = producer
            .map(|(id, sequence)| wire::ProducerBatch { producer_id: id.get(), sequence: sequence.get() });
        let messages = messages.iter().map(|message| {
            let (id_hash_high, id_hash_low) = message.id.map_or((0, 0), IdHash::halves);
            let EachMessage { place, length, properties, delay_ms, .. } = *message;
            let properties = properties_to_wire(properties);
            wire::EachMessage { place, length, properties, delay_ms, id_hash_high, id_hash_low }
        });
        let routed = routed.map(|routed| wire::Routed { follows: routed.follows.map_or(0, Sequence::get) });
        Self::of(WireCommand::PublishEach(wire::PublishEach {
            queue_id: queue.get(),
            producer,
            batch,
            messages: messages.collect(),
            routed,
            partitions,
        }))
    }

    /// Batches for several queues, each with its queue, the number of its messages, and its parts.
    #[must_use]
    pub fn publish_together(
        producer: Option<(ProducerId, Sequence)>,
        batches: Vec<(QueueId, u32, Bytes, Vec<BatchRun>)>,
    ) -> Self {
        let producer = producer
            .map(|(id, sequence)| wire::ProducerBatch { producer_id: id.get(), sequence: sequence.get() });
        let parts = batches.into_iter().map(|(queue, count, batch, runs)| wire::Publish {
            queue_id: queue.get(),
            producer,
            count,
            batch,
            runs: runs.into_iter().map(run_to_wire).collect(),
            partitions: 0,
        });
        Self::of(WireCommand::PublishTogether(wire::PublishTogether { parts: parts.collect() }))
    }

    /// Any other command of a shard with messages.
    ///
    /// # Panics
    /// For a publish, which is not complete without its batch: use [`Proposed::publish`] or
    /// [`Proposed::publish_each`].
    #[must_use]
    pub fn shard(command: &Command) -> Self {
        Self::of(match command {
            Command::Publish { .. } | Command::PublishEach { .. } | Command::PublishTogether { .. } => {
                panic!("a publish was to be proposed without its batch")
            }
            Command::OpenQueue { queue, name, settings, revision } => {
                WireCommand::OpenQueue(wire::OpenQueue {
                    queue_id: queue.get(),
                    name: name.clone(),
                    settings: Some(settings_to_wire(settings)),
                    settings_revision: *revision,
                })
            }
            Command::CloseQueue { queue } => {
                WireCommand::CloseQueue(wire::CloseQueue { queue_id: queue.get() })
            }
            Command::PurgeQueue { queue } => {
                WireCommand::PurgeQueue(wire::PurgeQueue { queue_id: queue.get() })
            }
            Command::CreateGroup { queue, name, start, filter } => {
                let WirePosition { start, offset, time_ms } = (*start).into();
                let name = name.clone();
                WireCommand::CreateGroup(wire::CreateGroup {
                    queue_id: queue.get(),
                    name,
                    start,
                    offset,
                    time_ms,
                    filter: filter.clone().into(),
                })
            }
            Command::UpdateGroup { queue, group, filter } => {
                let (queue_id, group_id) = (queue.get(), group.get());
                WireCommand::UpdateGroup(wire::UpdateGroup {
                    queue_id,
                    group_id,
                    filter: filter.clone().into(),
                })
            }
            Command::SeekGroup { queue, group, to } => {
                let WirePosition { start, offset, time_ms } = (*to).into();
                let (queue_id, group_id) = (queue.get(), group.get());
                WireCommand::SeekGroup(wire::SeekGroup { queue_id, group_id, start, offset, time_ms })
            }
            Command::Trim { queue } => WireCommand::Trim(wire::Trim { queue_id: queue.get() }),
            Command::DeleteGroup { queue, group } => {
                WireCommand::DeleteGroup(wire::DeleteGroup { queue_id: queue.get(), group_id: group.get() })
            }
            Command::Settle { queue, group, acks, returns, expired, seek_count } => {
                WireCommand::Settle(wire::Settle {
                    queue_id: queue.get(),
                    group_id: group.get(),
                    acks: acks.iter().copied().map(range_to_wire).collect(),
                    returns: returns.iter().copied().map(return_to_wire).collect(),
                    expired: expired.iter().copied().map(range_to_wire).collect(),
                    seek_count: *seek_count,
                })
            }
            Command::DeadLettersMoved { queue, group, up_to } => {
                WireCommand::DeadLettersMoved(wire::DeadLettersMoved {
                    queue_id: queue.get(),
                    group_id: group.get(),
                    up_to_sequence: up_to.get(),
                })
            }
        })
    }

    /// A command of the catalog.
    #[must_use]
    pub fn catalog(command: &CatalogCommand) -> Self {
        Self::of(catalog::command_to_wire(command))
    }

    /// How many bytes it adds to an entry.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        encoding::message::encoded_len(tag::COMMANDS, &self.0)
    }

    const fn of(command: WireCommand) -> Self {
        Self(wire::Command { command: Some(command) })
    }
}

/// The body of an entry with these commands, which are all for the same kind of shard. Copies each batch once.
#[must_use]
pub fn encode_entry(head: EntryHead, commands: &[Proposed]) -> Bytes {
    let EntryHead { leader_time_ms, replicated_index } = head;
    let len = encoding::uint64::encoded_len(tag::LEADER_TIME_MS, &leader_time_ms)
        + encoding::uint64::encoded_len(tag::REPLICATED_INDEX, &replicated_index)
        + commands.iter().map(Proposed::encoded_len).sum::<usize>();
    let mut payload = BytesMut::with_capacity(len);
    encoding::uint64::encode(tag::LEADER_TIME_MS, &leader_time_ms, &mut payload);
    encoding::uint64::encode(tag::REPLICATED_INDEX, &replicated_index, &mut payload);
    for command in commands {
        encoding::message::encode(tag::COMMANDS, &command.0, &mut payload);
    }
    payload.freeze()
}

/// Reads the body of an entry. The positions of batches count from the start of `payload`.
///
/// # Errors
/// When the bytes are not the body of an entry that this version knows.
pub fn decode_entry(payload: &Bytes) -> Result<DecodedEntry, DecodeError> {
    if u32::try_from(payload.len()).is_err() {
        return Err(DecodeError::TooLarge);
    }
    let wire::EntryBody { leader_time_ms, replicated_index, commands } =
        wire::EntryBody::decode(payload.clone())?;
    let mut shard = Vec::with_capacity(commands.len());
    let mut of_catalog = Vec::new();
    for command in commands {
        let command = command.command.ok_or(DecodeError::Missing("command"))?;
        match catalog::command_from_wire(&command)? {
            Some(command) => of_catalog.push(command),
            None => shard.push(shard_command_from_wire(command, payload)?),
        }
    }
    let commands = match (shard.is_empty(), of_catalog.is_empty()) {
        (_, true) => Commands::Shard(shard),
        (true, false) => Commands::Catalog(of_catalog),
        (false, false) => return Err(DecodeError::MixedCommands),
    };
    Ok(DecodedEntry { head: EntryHead { leader_time_ms, replicated_index }, commands })
}

fn shard_command_from_wire(command: WireCommand, payload: &Bytes) -> Result<Command, DecodeError> {
    Ok(match command {
        WireCommand::OpenQueue(command) => Command::OpenQueue {
            queue: QueueId::new(command.queue_id),
            name: command.name,
            settings: settings_from_wire(command.settings)?,
            revision: command.settings_revision,
        },
        WireCommand::CloseQueue(command) => Command::CloseQueue { queue: QueueId::new(command.queue_id) },
        WireCommand::PurgeQueue(command) => Command::PurgeQueue { queue: QueueId::new(command.queue_id) },
        WireCommand::Publish(command) => Command::Publish {
            queue: QueueId::new(command.queue_id),
            producer: command.producer.map(producer_from_wire),
            count: command.count,
            block: span_in(payload, &command.batch)?,
            runs: runs_from_wire(&command)?,
            partitions: command.partitions,
        },
        WireCommand::PublishEach(command) => Command::PublishEach {
            queue: QueueId::new(command.queue_id),
            producer: command.producer.map(producer_from_wire),
            block: span_in(payload, &command.batch)?,
            messages: messages_from_wire(&command)?,
            routed: command.routed.map(|routed| Routed {
                follows: (routed.follows != 0).then(|| Sequence::new(routed.follows)),
            }),
            partitions: command.partitions,
        },
        WireCommand::PublishTogether(command) => together_from_wire(&command, payload)?,
        WireCommand::CreateGroup(command) => Command::CreateGroup {
            queue: QueueId::new(command.queue_id),
            start: WirePosition { start: command.start, offset: command.offset, time_ms: command.time_ms }
                .try_into()?,
            name: command.name,
            filter: command.filter.into(),
        },
        WireCommand::UpdateGroup(command) => Command::UpdateGroup {
            queue: QueueId::new(command.queue_id),
            group: GroupId::new(command.group_id),
            filter: command.filter.into(),
        },
        WireCommand::SeekGroup(command) => Command::SeekGroup {
            queue: QueueId::new(command.queue_id),
            group: GroupId::new(command.group_id),
            to: WirePosition { start: command.start, offset: command.offset, time_ms: command.time_ms }
                .try_into()?,
        },
        WireCommand::Trim(command) => Command::Trim { queue: QueueId::new(command.queue_id) },
        WireCommand::DeleteGroup(command) => Command::DeleteGroup {
            queue: QueueId::new(command.queue_id),
            group: GroupId::new(command.group_id),
        },
        WireCommand::Settle(command) => Command::Settle {
            queue: QueueId::new(command.queue_id),
            group: GroupId::new(command.group_id),
            acks: command.acks.into_iter().map(range_from_wire).collect(),
            returns: command.returns.into_iter().map(return_from_wire).collect::<Result<_, _>>()?,
            expired: command.expired.into_iter().map(range_from_wire).collect(),
            seek_count: command.seek_count,
        },
        WireCommand::DeadLettersMoved(command) => Command::DeadLettersMoved {
            queue: QueueId::new(command.queue_id),
            group: GroupId::new(command.group_id),
            up_to: Sequence::new(command.up_to_sequence),
        },
        _ => return Err(DecodeError::MixedCommands),
    })
}

/// They have the same producer, and no queue comes twice.
fn together_from_wire(command: &wire::PublishTogether, payload: &Bytes) -> Result<Command, DecodeError> {
    let producer = command.parts.first().and_then(|part| part.producer);
    let mut queues = BTreeSet::new();
    if command.parts.iter().any(|part| part.producer != producer || !queues.insert(part.queue_id)) {
        return Err(DecodeError::BatchRuns);
    }
    let parts = command.parts.iter().map(|part| {
        Ok(PublishPart {
            queue: QueueId::new(part.queue_id),
            count: part.count,
            block: span_in(payload, &part.batch)?,
            runs: runs_from_wire(part)?,
        })
    });
    let parts = parts.collect::<Result<_, DecodeError>>()?;
    Ok(Command::PublishTogether { producer: producer.map(producer_from_wire), parts })
}

fn producer_from_wire(batch: wire::ProducerBatch) -> (ProducerId, Sequence) {
    (ProducerId::new(batch.producer_id), Sequence::new(batch.sequence))
}

/// Where `batch` lies in `payload`, of which it is a slice.
fn span_in(payload: &Bytes, batch: &Bytes) -> Result<BlockSpan, DecodeError> {
    // An empty slice may point anywhere.
    if batch.is_empty() {
        return Ok(BlockSpan { position: 0, length: 0 });
    }
    let position = (batch.as_ptr() as usize).checked_sub(payload.as_ptr() as usize);
    let position = position.filter(|position| position + batch.len() <= payload.len());
    let position = position.expect("decoding bytes out of `Bytes` slices them");
    let as_u32 = |bytes: usize| u32::try_from(bytes).map_err(|_| DecodeError::TooLarge);
    Ok(BlockSpan { position: as_u32(position)?, length: as_u32(batch.len())? })
}

/// A position as two commands carry it.
struct WirePosition {
    start: i32,
    offset: Option<u64>,
    time_ms: Option<u64>,
}

impl From<Position> for WirePosition {
    fn from(position: Position) -> Self {
        let at = |start: wire::GroupStart| Self { start: start.into(), offset: None, time_ms: None };
        match position {
            Position::First => at(wire::GroupStart::First),
            Position::Next => at(wire::GroupStart::Next),
            Position::Offset(offset) => Self { offset: Some(offset.get()), ..at(wire::GroupStart::First) },
            Position::Time(time_ms) => Self { time_ms: Some(time_ms), ..at(wire::GroupStart::First) },
        }
    }
}

impl TryFrom<WirePosition> for Position {
    type Error = DecodeError;

    fn try_from(wire: WirePosition) -> Result<Self, DecodeError> {
        let unknown = |_| DecodeError::Unknown { field: "start", value: wire.start.into() };
        Ok(match (wire.offset, wire.time_ms) {
            (Some(offset), _) => Self::Offset(Offset::new(offset)),
            (None, Some(time_ms)) => Self::Time(time_ms),
            (None, None) => match wire::GroupStart::try_from(wire.start).map_err(unknown)? {
                wire::GroupStart::First => Self::First,
                wire::GroupStart::Next => Self::Next,
            },
        })
    }
}

fn run_to_wire(run: BatchRun) -> wire::BatchRun {
    let BatchRun { count, length, properties, delay_ms } = run;
    wire::BatchRun { count, length, properties: properties_to_wire(properties), delay_ms }
}

/// The parts of a batch, which must be the whole of it.
fn runs_from_wire(publish: &wire::Publish) -> Result<Vec<BatchRun>, DecodeError> {
    let runs = publish.runs.iter().map(|run| {
        let properties = properties_from_wire(run.properties)?;
        Ok(BatchRun { count: run.count, length: run.length, properties, delay_ms: run.delay_ms })
    });
    let runs = runs.collect::<Result<Vec<_>, DecodeError>>()?;
    let count: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
    let length: u64 = runs.iter().map(|run| u64::from(run.length)).sum();
    let is_whole = count == u64::from(publish.count) && length == publish.batch.len() as u64;
    if runs.is_empty() || is_whole { Ok(runs) } else { Err(DecodeError::BatchRuns) }
}

/// The messages' places rise, and together they are the batch.
fn messages_from_wire(publish: &wire::PublishEach) -> Result<Vec<EachMessage>, DecodeError> {
    let messages = publish.messages.iter().map(|message| {
        let wire::EachMessage { place, length, properties, delay_ms, id_hash_high, id_hash_low } = *message;
        let properties = properties_from_wire(properties)?;
        let has_id = (id_hash_high, id_hash_low) != (0, 0);
        let id = has_id.then(|| IdHash::from_halves(id_hash_high, id_hash_low));
        Ok(EachMessage { place, length, properties, delay_ms, id })
    });
    let messages = messages.collect::<Result<Vec<_>, DecodeError>>()?;
    let length: u64 = messages.iter().map(|message| u64::from(message.length)).sum();
    let rises = messages.is_sorted_by(|before, after| before.place < after.place);
    if rises && length == publish.batch.len() as u64 { Ok(messages) } else { Err(DecodeError::BatchRuns) }
}

fn return_to_wire(back: Return) -> wire::Return {
    let Return { range, attempt, not_before_ms, rejected } = back;
    wire::Return { range: Some(range_to_wire(range)), attempt, not_before_ms, rejected }
}

fn return_from_wire(back: wire::Return) -> Result<Return, DecodeError> {
    let wire::Return { range, attempt, not_before_ms, rejected } = back;
    Ok(Return { range: required_range(range)?, attempt, not_before_ms, rejected })
}
