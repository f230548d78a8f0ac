//! Checkpoint records: keys whose bytes sort as the keys do, and values that begin with a version.

use bytes::Bytes;
use prost::Message;
use skein_proto::{
    ids::{GroupId, NodeId, Offset, ProducerId, QueueId, Sequence, ShardId, TopicId},
    storage as wire,
};

use super::{
    DecodeError, id_from_wire, nodes, range_from_wire, range_to_wire, required_range,
    settings::{properties_from_wire, properties_to_wire, settings_from_wire, settings_to_wire},
};
use crate::broker::{
    Binding, Block, BlockSpan, CatalogQueueRecord, CatalogRecord, CatalogTopicRecord, DeadLetterRun,
    GiveUpReason, GivenUp, GroupRecord, Growth, IdsRecord, PageRecord, ProducerRecord, PublishedBatch,
    QueuePart, QueueRecord, Record, RecordKey, Returned, RoutedBatch, ShardRecord,
};

/// The version that values begin with. A new one comes with whatever old readers would misread.
const VERSION: u8 = 1;

/// The longest key: kind, queue, part and a number.
pub const KEY_BYTES_MAX: usize = 1 + 8 + 1 + 8;

/// The first byte of a key: its kind.
mod kind {
    pub(super) const SHARD: u8 = 1;
    pub(super) const QUEUE: u8 = 2;
    pub(super) const CATALOG: u8 = 3;
    pub(super) const CATALOG_QUEUE: u8 = 4;
    pub(super) const CATALOG_TOPIC: u8 = 5;
    pub(super) const CATALOG_NODE: u8 = 6;
}

/// The byte after the queue id in the keys of a queue: which part it is.
mod part {
    pub(super) const HEAD: u8 = 1;
    pub(super) const GROUP: u8 = 2;
    pub(super) const PAGE: u8 = 3;
    pub(super) const PRODUCER: u8 = 4;
    pub(super) const IDS: u8 = 5;
}

/// A key as bytes, which sort as the keys do.
#[must_use]
pub fn encode_key(key: RecordKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(KEY_BYTES_MAX);
    match key {
        RecordKey::Shard => bytes.push(kind::SHARD),
        RecordKey::Queue { queue, part } => {
            bytes = queue_key_prefix(queue);
            match part {
                QueuePart::Head => bytes.push(part::HEAD),
                QueuePart::Group(group) => {
                    bytes.push(part::GROUP);
                    bytes.extend(group.get().to_be_bytes());
                }
                QueuePart::Page(number) => {
                    bytes.push(part::PAGE);
                    bytes.extend(number.to_be_bytes());
                }
                QueuePart::Producer(producer) => {
                    bytes.push(part::PRODUCER);
                    bytes.extend(producer.get().to_be_bytes());
                }
                QueuePart::Ids(number) => {
                    bytes.push(part::IDS);
                    bytes.extend(number.to_be_bytes());
                }
            }
        }
        RecordKey::Catalog => bytes.push(kind::CATALOG),
        RecordKey::CatalogQueue { queue } => {
            bytes.push(kind::CATALOG_QUEUE);
            bytes.extend(queue.get().to_be_bytes());
        }
        RecordKey::CatalogTopic { topic } => {
            bytes.push(kind::CATALOG_TOPIC);
            bytes.extend(topic.get().to_be_bytes());
        }
        RecordKey::CatalogNode { node } => {
            bytes.push(kind::CATALOG_NODE);
            bytes.extend(node.get().to_be_bytes());
        }
    }
    bytes
}

/// What the keys of all records of a queue begin with.
#[must_use]
pub fn queue_key_prefix(queue: QueueId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(KEY_BYTES_MAX);
    bytes.push(kind::QUEUE);
    bytes.extend(queue.get().to_be_bytes());
    bytes
}

/// A record as bytes.
#[must_use]
pub fn encode_record(record: &Record) -> Vec<u8> {
    match record {
        Record::Shard(record) => encode_value(&shard_to_wire(record)),
        Record::Queue(record) => encode_value(&queue_to_wire(record)),
        Record::Group(record) => encode_value(&group_to_wire(record)),
        Record::Page(record) => encode_value(&page_to_wire(record)),
        Record::Producer(record) => encode_value(&producer_to_wire(record)),
        Record::Ids(record) => encode_value(&ids_to_wire(record)),
        Record::Catalog(record) => encode_value(&wire::CatalogRecord {
            next_queue_id: record.next_queue.get(),
            revision: record.revision,
            replicated_index: record.replicated_index,
            next_topic_id: record.next_topic.get(),
            next_node_id: record.next_node.get(),
        }),
        Record::CatalogTopic(record) => encode_value(&topic_to_wire(record)),
        Record::CatalogNode(record) => encode_value(&nodes::record_to_wire(record)),
        Record::CatalogQueue(record) => encode_value(&wire::CatalogQueueRecord {
            name: record.name.clone(),
            shard_id: record.shard.get(),
            settings: Some(settings_to_wire(&record.settings)),
            settings_revision: record.settings_revision,
        }),
    }
}

/// Reads a record and its key.
///
/// # Errors
/// When the bytes are not a key and the record that belongs to it, of a version that is known here.
pub fn decode_record(key: &[u8], value: &[u8]) -> Result<(RecordKey, Record), DecodeError> {
    let key = decode_key(key)?;
    let (&version, value) = value.split_first().ok_or(DecodeError::Missing("version"))?;
    if version != VERSION {
        return Err(DecodeError::Unknown { field: "version", value: version.into() });
    }
    let value = Bytes::copy_from_slice(value);
    let record = match key {
        RecordKey::Shard => Record::Shard(shard_from_wire(Message::decode(value)?)),
        RecordKey::Queue { part: QueuePart::Head, .. } => {
            Record::Queue(queue_from_wire(Message::decode(value)?)?)
        }
        RecordKey::Queue { part: QueuePart::Group(_), .. } => {
            Record::Group(group_from_wire(Message::decode(value)?)?)
        }
        RecordKey::Queue { part: QueuePart::Page(_), .. } => {
            Record::Page(page_from_wire(Message::decode(value)?)?)
        }
        RecordKey::Queue { part: QueuePart::Producer(_), .. } => {
            Record::Producer(producer_from_wire(Message::decode(value)?))
        }
        RecordKey::Queue { part: QueuePart::Ids(_), .. } => {
            Record::Ids(ids_from_wire(Message::decode(value)?)?)
        }
        RecordKey::Catalog => {
            let record: wire::CatalogRecord = Message::decode(value)?;
            Record::Catalog(CatalogRecord {
                next_queue: QueueId::new(record.next_queue_id),
                revision: record.revision,
                replicated_index: record.replicated_index,
                next_topic: TopicId::new(record.next_topic_id.max(1)),
                next_node: NodeId::new(record.next_node_id.max(1)),
            })
        }
        RecordKey::CatalogTopic { .. } => Record::CatalogTopic(topic_from_wire(Message::decode(value)?)),
        RecordKey::CatalogNode { .. } => {
            Record::CatalogNode(nodes::record_from_wire(Message::decode(value)?)?)
        }
        RecordKey::CatalogQueue { .. } => {
            let wire::CatalogQueueRecord { name, shard_id, settings, settings_revision } =
                Message::decode(value)?;
            let settings = settings_from_wire(settings)?;
            let shard = ShardId::new(shard_id);
            Record::CatalogQueue(CatalogQueueRecord { name, shard, settings, settings_revision })
        }
    };
    Ok((key, record))
}

fn decode_key(key: &[u8]) -> Result<RecordKey, DecodeError> {
    let length = || DecodeError::KeyLength(key.len());
    let (&kind, rest) = key.split_first().ok_or_else(length)?;
    match kind {
        kind::SHARD if rest.is_empty() => Ok(RecordKey::Shard),
        kind::CATALOG if rest.is_empty() => Ok(RecordKey::Catalog),
        kind::CATALOG_QUEUE => {
            let queue = rest.try_into().map_err(|_| length())?;
            Ok(RecordKey::CatalogQueue { queue: QueueId::new(u64::from_be_bytes(queue)) })
        }
        kind::CATALOG_TOPIC => {
            let topic = rest.try_into().map_err(|_| length())?;
            Ok(RecordKey::CatalogTopic { topic: TopicId::new(u64::from_be_bytes(topic)) })
        }
        kind::CATALOG_NODE => {
            let node = rest.try_into().map_err(|_| length())?;
            Ok(RecordKey::CatalogNode { node: NodeId::new(u64::from_be_bytes(node)) })
        }
        kind::QUEUE => {
            let (&queue, rest) = rest.split_first_chunk().ok_or_else(length)?;
            let (&part, rest) = rest.split_first().ok_or_else(length)?;
            let number = || rest.try_into().map(u64::from_be_bytes).map_err(|_| length());
            let part = match part {
                part::HEAD if rest.is_empty() => QueuePart::Head,
                part::GROUP => {
                    let group = rest.try_into().map_err(|_| length())?;
                    QueuePart::Group(GroupId::new(u32::from_be_bytes(group)))
                }
                part::PAGE => QueuePart::Page(number()?),
                part::PRODUCER => QueuePart::Producer(ProducerId::new(number()?)),
                part::IDS => QueuePart::Ids(number()?),
                part::HEAD => return Err(length()),
                unknown => {
                    return Err(DecodeError::Unknown { field: "queue part", value: unknown.into() });
                }
            };
            Ok(RecordKey::Queue { queue: QueueId::new(u64::from_be_bytes(queue)), part })
        }
        kind::SHARD | kind::CATALOG => Err(length()),
        unknown => Err(DecodeError::Unknown { field: "key kind", value: unknown.into() }),
    }
}

fn encode_value(message: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + message.encoded_len());
    value.push(VERSION);
    message.encode_raw(&mut value);
    value
}

fn shard_to_wire(record: &ShardRecord) -> wire::ShardRecord {
    let closed_queues = record
        .closed_queues
        .iter()
        .map(|(first, last)| wire::QueueRange { first_queue_id: first.get(), last_queue_id: last.get() });
    wire::ShardRecord {
        time_ms: record.time_ms,
        replicated_index: record.replicated_index,
        elapsed_ms: record.elapsed_ms,
        closed_queues: closed_queues.collect(),
    }
}

fn shard_from_wire(record: wire::ShardRecord) -> ShardRecord {
    let closed_queues = record
        .closed_queues
        .into_iter()
        .map(|range| (QueueId::new(range.first_queue_id), QueueId::new(range.last_queue_id)));
    ShardRecord {
        time_ms: record.time_ms,
        replicated_index: record.replicated_index,
        elapsed_ms: record.elapsed_ms,
        closed_queues: closed_queues.collect(),
    }
}

fn queue_to_wire(record: &QueueRecord) -> wire::QueueRecord {
    wire::QueueRecord {
        name: record.name.clone(),
        settings: Some(settings_to_wire(&record.settings)),
        first_offset: record.first_offset.get(),
        next_offset: record.next_offset.get(),
        next_block: record.next_block,
        message_count: record.message_count,
        next_group_id: record.next_group.get(),
        settings_revision: record.settings_revision,
        length_floor: record.length_floor.get(),
        used_at_ms: record.used_at_ms,
        first_id: record.first_id,
        growths: record.growths.iter().copied().map(growth_to_wire).collect(),
    }
}

fn growth_to_wire(growth: Growth) -> wire::Growth {
    let Growth { from, to, at } = growth;
    wire::Growth { from_partitions: from, to_partitions: to, at_offset: at.get() }
}

fn growth_from_wire(growth: wire::Growth) -> Growth {
    let wire::Growth { from_partitions: from, to_partitions: to, at_offset } = growth;
    Growth { from, to, at: Offset::new(at_offset) }
}

fn queue_from_wire(record: wire::QueueRecord) -> Result<QueueRecord, DecodeError> {
    Ok(QueueRecord {
        name: record.name,
        settings: settings_from_wire(record.settings)?,
        first_offset: Offset::new(record.first_offset),
        next_offset: Offset::new(record.next_offset),
        next_block: record.next_block,
        message_count: record.message_count,
        next_group: GroupId::new(record.next_group_id),
        settings_revision: record.settings_revision,
        length_floor: Offset::new(record.length_floor),
        used_at_ms: record.used_at_ms,
        first_id: record.first_id,
        growths: record.growths.into_iter().map(growth_from_wire).collect(),
    })
}

fn group_to_wire(record: &GroupRecord) -> wire::GroupRecord {
    let returned = record.returned.iter().map(|&(range, returned)| wire::ReturnedRun {
        range: Some(range_to_wire(range)),
        attempts: returned.attempts,
        not_before_ms: returned.not_before_ms,
    });
    let dead_letters = record.dead_letters.iter().map(|run| wire::DeadLetterRun {
        first_sequence: run.first_sequence.get(),
        range: Some(range_to_wire(run.range)),
        attempts: run.given_up.attempts,
        reason: match run.given_up.reason {
            GiveUpReason::MaxDeliveries => wire::GiveUpReason::MaxDeliveries,
            GiveUpReason::Expired => wire::GiveUpReason::Expired,
            GiveUpReason::Overflow => wire::GiveUpReason::Overflow,
            GiveUpReason::Rejected => wire::GiveUpReason::Rejected,
        }
        .into(),
        at_ms: run.given_up.at_ms,
    });
    wire::GroupRecord {
        name: record.name.clone(),
        acked_floor: record.acked_floor.get(),
        acked: record.acked.iter().copied().map(range_to_wire).collect(),
        returned: returned.collect(),
        dead_letters: dead_letters.collect(),
        next_dead_letter_sequence: record.next_dead_letter.get(),
        dead_lettered_total: record.dead_lettered_total,
        dropped_total: record.dropped_total,
        seek_count: record.seek_count,
        filter: record.filter.clone().into(),
    }
}

fn group_from_wire(record: wire::GroupRecord) -> Result<GroupRecord, DecodeError> {
    let returned = record.returned.into_iter().map(|run| {
        let returned = Returned { attempts: run.attempts, not_before_ms: run.not_before_ms };
        Ok((required_range(run.range)?, returned))
    });
    let dead_letters = record.dead_letters.into_iter().map(|run| {
        let first_sequence = Sequence::new(run.first_sequence);
        let reason = match run.reason() {
            wire::GiveUpReason::MaxDeliveries if run.reason != 0 => {
                return Err(DecodeError::Unknown { field: "reason", value: run.reason.into() });
            }
            wire::GiveUpReason::MaxDeliveries => GiveUpReason::MaxDeliveries,
            wire::GiveUpReason::Expired => GiveUpReason::Expired,
            wire::GiveUpReason::Overflow => GiveUpReason::Overflow,
            wire::GiveUpReason::Rejected => GiveUpReason::Rejected,
        };
        let given_up = GivenUp { attempts: run.attempts, reason, at_ms: run.at_ms };
        Ok(DeadLetterRun { first_sequence, range: required_range(run.range)?, given_up })
    });
    Ok(GroupRecord {
        acked_floor: Offset::new(record.acked_floor),
        acked: record.acked.into_iter().map(range_from_wire).collect(),
        returned: returned.collect::<Result<_, DecodeError>>()?,
        dead_letters: dead_letters.collect::<Result<_, DecodeError>>()?,
        next_dead_letter: Sequence::new(record.next_dead_letter_sequence),
        dead_lettered_total: record.dead_lettered_total,
        dropped_total: record.dropped_total,
        seek_count: record.seek_count,
        filter: record.filter.into(),
        name: record.name,
    })
}

fn page_to_wire(record: &PageRecord) -> wire::PageRecord {
    let first_offset = record.blocks.first().map_or(0, |block| block.first.get());
    let mut next = first_offset;
    let blocks = record.blocks.iter().map(|block| {
        let offsets_skipped = block.first.get().saturating_sub(next);
        next = block.end().get();
        wire::Block {
            index: block.index,
            position: block.span.position,
            length: block.span.length,
            count: block.count,
            published_at_ms: block.published_at_ms,
            offsets_skipped,
            properties: properties_to_wire(block.properties),
        }
    });
    wire::PageRecord { first_offset, blocks: blocks.collect() }
}

fn page_from_wire(record: wire::PageRecord) -> Result<PageRecord, DecodeError> {
    let mut next = record.first_offset;
    let blocks = record.blocks.into_iter().map(|block| {
        let first = next.checked_add(block.offsets_skipped).ok_or(DecodeError::OffsetOverflow)?;
        next = first.checked_add(block.count.into()).ok_or(DecodeError::OffsetOverflow)?;
        Ok(Block {
            index: block.index,
            first: Offset::new(first),
            published_at_ms: block.published_at_ms,
            span: BlockSpan { position: block.position, length: block.length },
            count: block.count,
            properties: properties_from_wire(block.properties)?,
        })
    });
    Ok(PageRecord { blocks: blocks.collect::<Result<_, DecodeError>>()? })
}

fn producer_to_wire(record: &ProducerRecord) -> wire::ProducerRecord {
    let recent = record
        .recent
        .iter()
        .map(|batch| wire::PublishedBatch { first_offset: batch.first.get(), count: batch.count });
    let routed = record.routed.iter().map(|batch| wire::RoutedBatch {
        sequence: batch.sequence.get(),
        places: batch.places.iter().copied().map(range_to_wire).collect(),
    });
    wire::ProducerRecord {
        last_sequence: record.last.get(),
        used_at_ms: record.used_at_ms,
        recent: recent.collect(),
        routed: routed.collect(),
    }
}

fn producer_from_wire(record: wire::ProducerRecord) -> ProducerRecord {
    let recent = record
        .recent
        .into_iter()
        .map(|batch| PublishedBatch { first: Offset::new(batch.first_offset), count: batch.count });
    let routed = record.routed.into_iter().map(|batch| RoutedBatch {
        sequence: Sequence::new(batch.sequence),
        places: batch.places.into_iter().map(range_from_wire).collect(),
    });
    ProducerRecord {
        last: Sequence::new(record.last_sequence),
        used_at_ms: record.used_at_ms,
        recent: recent.collect(),
        routed: routed.collect(),
    }
}

fn topic_to_wire(record: &CatalogTopicRecord) -> wire::CatalogTopicRecord {
    let bindings = record.bindings.iter().map(|binding| wire::Binding {
        queue_id: binding.queue.get(),
        filter: binding.filter.clone().into(),
    });
    wire::CatalogTopicRecord {
        name: record.name.clone(),
        alternate_queue_id: record.alternate.map_or(0, QueueId::get),
        bindings: bindings.collect(),
        revision: record.revision,
    }
}

fn topic_from_wire(record: wire::CatalogTopicRecord) -> CatalogTopicRecord {
    let wire::CatalogTopicRecord { name, alternate_queue_id, bindings, revision } = record;
    let bindings = bindings
        .into_iter()
        .map(|binding| Binding { queue: QueueId::new(binding.queue_id), filter: binding.filter.into() });
    let alternate = (alternate_queue_id != 0).then(|| QueueId::new(alternate_queue_id));
    CatalogTopicRecord { name, bindings: bindings.collect(), alternate, revision }
}

fn ids_to_wire(record: &IdsRecord) -> wire::IdsRecord {
    let ids = record
        .ids
        .iter()
        .map(|(at_ms, id)| wire::RememberedId { at_ms: *at_ms, id_hash: Bytes::copy_from_slice(&id.0) });
    wire::IdsRecord { first_number: record.first_number, ids: ids.collect() }
}

fn ids_from_wire(record: wire::IdsRecord) -> Result<IdsRecord, DecodeError> {
    let ids = record.ids.into_iter().map(|id| Ok((id.at_ms, id_from_wire(&id.id_hash)?)));
    let ids = ids.collect::<Result<_, DecodeError>>()?;
    Ok(IdsRecord { first_number: record.first_number, ids })
}
