//! What is encoded comes back; anything else is refused.

mod catalog;

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};
use skein_proto::ids::{GroupId, Offset, ProducerId, QueueId, Sequence};

use self::catalog::{catalog_command, keyed_catalog_record};
use super::{
    Commands, DecodeError, EntryHead, Proposed, decode_entry, decode_record, encode_entry, encode_key,
    encode_record, queue_key_prefix,
};
use crate::{
    broker::{
        Backoff, BatchRun, Block, BlockSpan, CatalogCommand, Command, DeadLetterRun, EachMessage,
        GiveUpReason, GivenUp, GroupRecord, Growth, IdHash, IdsRecord, Overflow, PageRecord, Position,
        ProducerRecord, Properties, PublishedBatch, QueuePart, QueueRecord, Record, RecordKey, Retention,
        Return, Returned, Routed, RoutedBatch, Settings, ShardRecord,
    },
    offsets::OffsetRange,
};

fn queue() -> impl Strategy<Value = QueueId> {
    any::<u64>().prop_map(QueueId::new)
}

fn group() -> impl Strategy<Value = GroupId> {
    any::<u32>().prop_map(GroupId::new)
}

fn range() -> impl Strategy<Value = OffsetRange> {
    any::<(u64, u64)>().prop_map(|(first, count)| OffsetRange::new(Offset::new(first), count))
}

fn settings() -> impl Strategy<Value = Settings> {
    let limit = || option::of(1..u64::MAX);
    let limits = (limit(), limit(), limit(), limit(), limit(), limit());
    (any::<[u32; 6]>(), option::of("[a-z]{1,8}"), any::<(bool, bool, bool, bool)>(), limits).prop_map(
        |(numbers, dead_letter_queue, choices, limits)| {
            let [max_deliveries, lease_ms, delay_ms, delay_max_ms, multiplier, lower_priority_percent] =
                numbers;
            let (max_age_ms, max_messages, max_bytes, message_ttl_ms, expires_ms, dedup_window_ms) = limits;
            let partitions = lease_ms % 5;
            Settings {
                max_deliveries,
                dead_letter_queue,
                lease_ms,
                redelivery: Backoff { delay_ms, delay_max_ms, multiplier },
                retention: if choices.0 { Retention::Limits } else { Retention::UntilAcked },
                max_age_ms,
                max_messages,
                max_bytes,
                overflow: if choices.1 { Overflow::DropOldest } else { Overflow::RejectPublish },
                message_ttl_ms,
                single_active_consumer: choices.2,
                expires_ms,
                lower_priority_percent,
                order_by_key: choices.3,
                dedup_window_ms,
                partitions,
            }
        },
    )
}

fn properties() -> impl Strategy<Value = Properties> {
    let some = any::<(u64, u64, u8, u16)>().prop_map(|(ttl_ms, deliver_at_ms, priority, key_slot)| {
        Properties { ttl_ms, deliver_at_ms, priority, key_slot }
    });
    prop_oneof![Just(Properties::default()), some]
}

fn filter() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..9)
}

fn position() -> impl Strategy<Value = Position> {
    prop_oneof![
        Just(Position::First),
        Just(Position::Next),
        any::<u64>().prop_map(|offset| Position::Offset(Offset::new(offset))),
        any::<u64>().prop_map(Position::Time),
    ]
}

/// A batch in as many parts, of one message each.
fn runs_of(batch: &[u8], properties: &[Properties]) -> Vec<BatchRun> {
    let properties = &properties[..properties.len().min(batch.len())];
    let length = |place| if place + 1 == properties.len() { batch.len() - place } else { 1 };
    let run = |(place, properties): (usize, &Properties)| BatchRun {
        count: 1,
        length: length(place) as u32,
        properties: *properties,
        delay_ms: place as u64,
    };
    properties.iter().enumerate().map(run).collect()
}

fn head() -> impl Strategy<Value = EntryHead> {
    any::<(u64, u64)>()
        .prop_map(|(leader_time_ms, replicated_index)| EntryHead { leader_time_ms, replicated_index })
}

/// A command, and the batch that goes with a publish.
fn shard_command() -> impl Strategy<Value = (Command, Bytes)> {
    let producer = option::of(
        any::<(u64, u64)>().prop_map(|(id, sequence)| (ProducerId::new(id), Sequence::new(sequence))),
    );
    let back =
        (range(), any::<(u32, u64, bool)>()).prop_map(|(range, (attempt, not_before_ms, rejected))| Return {
            range,
            attempt,
            not_before_ms,
            rejected,
        });
    let other = prop_oneof![
        (queue(), ".{0,9}", settings(), any::<u64>()).prop_map(|(queue, name, settings, revision)| {
            Command::OpenQueue { queue, name, settings, revision }
        }),
        queue().prop_map(|queue| Command::CloseQueue { queue }),
        queue().prop_map(|queue| Command::PurgeQueue { queue }),
        (queue(), ".{0,9}", position(), filter())
            .prop_map(|(queue, name, start, filter)| Command::CreateGroup { queue, name, start, filter }),
        (queue(), group(), filter()).prop_map(|(queue, group, filter)| Command::UpdateGroup {
            queue,
            group,
            filter
        }),
        (queue(), group()).prop_map(|(queue, group)| Command::DeleteGroup { queue, group }),
        (queue(), group(), position()).prop_map(|(queue, group, to)| Command::SeekGroup { queue, group, to }),
        queue().prop_map(|queue| Command::Trim { queue }),
        (queue(), group(), vec(range(), 0..4), vec(back, 0..4), vec(range(), 0..4), any::<u32>()).prop_map(
            |(queue, group, acks, returns, expired, seek_count)| Command::Settle {
                queue,
                group,
                acks,
                returns,
                expired,
                seek_count
            }
        ),
        (queue(), group(), any::<u64>()).prop_map(|(queue, group, up_to)| Command::DeadLettersMoved {
            queue,
            group,
            up_to: Sequence::new(up_to)
        }),
    ];
    let publish =
        (queue(), producer, (any::<u32>(), 0..9_u32), vec(any::<u8>(), 0..300), vec(properties(), 0..3))
            .prop_map(|(queue, producer, (count, partitions), batch, properties)| {
                let runs = runs_of(&batch, &properties);
                let count = if runs.is_empty() { count } else { runs.len() as u32 };
                // The true position is known only when the entry is encoded.
                let length = u32::try_from(batch.len()).unwrap();
                let block = BlockSpan { position: 0, length };
                (Command::Publish { queue, producer, count, block, runs, partitions }, Bytes::from(batch))
            });
    prop_oneof![2 => publish, 1 => publish_each(), 9 => other.prop_map(|command| (command, Bytes::new()))]
}

/// With the batch.
fn publish_each() -> impl Strategy<Value = (Command, Bytes)> {
    let id = option::of(any::<[u8; 16]>().prop_map(IdHash));
    let message = (1..4_u32, 0..300_u32, properties(), 0..9_u64, id);
    let producer = option::of((any::<u64>(), any::<u64>()))
        .prop_map(|producer| producer.map(|(id, sequence)| (ProducerId::new(id), Sequence::new(sequence))));
    let routed = option::of(option::of(1..9_u64))
        .prop_map(|routed| routed.map(|follows| Routed { follows: follows.map(Sequence::new) }));
    let publish = (queue(), producer, routed, vec(message, 0..5), 0..9_u32);
    publish.prop_map(|(queue, producer, routed, messages, partitions)| {
        let mut next = 0;
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(skipped, length, properties, delay_ms, id)| {
                next += skipped;
                EachMessage { place: next, length, properties, delay_ms, id }
            })
            .collect();
        let length = messages.iter().map(|message| message.length).sum();
        let block = BlockSpan { position: 0, length };
        let batch = Bytes::from(vec![7; length as usize]);
        (Command::PublishEach { queue, producer, block, messages, routed, partitions }, batch)
    })
}

fn proposed(command: &Command, batch: &Bytes) -> Proposed {
    match command {
        Command::Publish { queue, producer, count, runs, partitions, .. } => {
            Proposed::publish(*queue, *producer, *count, batch.clone(), runs, *partitions)
        }
        Command::PublishEach { queue, producer, messages, routed, partitions, .. } => {
            Proposed::publish_each(*queue, *producer, batch.clone(), messages, *routed, *partitions)
        }
        _ => Proposed::shard(command),
    }
}

fn span_of(command: &Command) -> Option<&BlockSpan> {
    match command {
        Command::Publish { block, .. } | Command::PublishEach { block, .. } => Some(block),
        _ => None,
    }
}

fn span_of_mut(command: &mut Command) -> Option<&mut BlockSpan> {
    match command {
        Command::Publish { block, .. } | Command::PublishEach { block, .. } => Some(block),
        _ => None,
    }
}

fn keyed_record() -> impl Strategy<Value = (RecordKey, Record)> {
    let part = |part: fn(u64) -> QueuePart| {
        (queue(), any::<u64>())
            .prop_map(move |(queue, number)| RecordKey::Queue { queue, part: part(number) })
    };
    let shard = (any::<[u64; 3]>(), vec((queue(), queue()), 0..4)).prop_map(
        |([time_ms, replicated_index, elapsed_ms], closed_queues)| {
            Record::Shard(ShardRecord { time_ms, replicated_index, elapsed_ms, closed_queues })
        },
    );
    let growth = any::<(u32, u32, u64)>().prop_map(|(from, to, at)| Growth { from, to, at: Offset::new(at) });
    let head = (".{0,9}", settings(), any::<[u64; 8]>(), group(), vec(growth, 0..3)).prop_map(
        |(name, settings, numbers, next_group, growths)| {
            let [first_offset, next_offset, length_floor] =
                [numbers[0], numbers[1], numbers[5]].map(Offset::new);
            Record::Queue(QueueRecord {
                name,
                settings,
                first_offset,
                next_offset,
                next_block: numbers[2],
                message_count: numbers[3],
                next_group,
                settings_revision: numbers[4],
                length_floor,
                used_at_ms: numbers[6],
                first_id: numbers[7],
                growths,
            })
        },
    );
    prop_oneof![
        (Just(RecordKey::Shard), shard),
        (part(|_| QueuePart::Head), head),
        (part(|number| QueuePart::Group(GroupId::new(number as u32))), group_record()),
        (part(QueuePart::Page), page_record()),
        (part(|number| QueuePart::Producer(ProducerId::new(number))), producer_record()),
        (part(QueuePart::Ids), ids_record()),
        keyed_catalog_record(),
    ]
}

fn group_record() -> impl Strategy<Value = Record> {
    let returned = (range(), any::<(u32, u64)>())
        .prop_map(|(range, (attempts, not_before_ms))| (range, Returned { attempts, not_before_ms }));
    let reason = prop_oneof![
        Just(GiveUpReason::MaxDeliveries),
        Just(GiveUpReason::Rejected),
        Just(GiveUpReason::Expired),
        Just(GiveUpReason::Overflow)
    ];
    let run = (any::<u64>(), range(), any::<(u32, u64)>(), reason).prop_map(
        |(first_sequence, range, (attempts, at_ms), reason)| {
            let given_up = GivenUp { attempts, reason, at_ms };
            DeadLetterRun { first_sequence: Sequence::new(first_sequence), range, given_up }
        },
    );
    let numbers = (any::<[u64; 4]>(), any::<u32>(), filter());
    (".{0,9}", vec(range(), 0..4), vec(returned, 0..4), vec(run, 0..4), numbers).prop_map(
        |(name, acked, returned, dead_letters, (numbers, seek_count, filter))| {
            let [floor, next, dead_lettered_total, dropped_total] = numbers;
            Record::Group(GroupRecord {
                name,
                acked_floor: Offset::new(floor),
                acked,
                returned,
                dead_letters,
                next_dead_letter: Sequence::new(next),
                dead_lettered_total,
                dropped_total,
                seek_count,
                filter,
            })
        },
    )
}

fn page_record() -> impl Strategy<Value = Record> {
    let block = (any::<(u64, u64, u32, u32, u32, u32)>(), properties());
    (any::<u32>(), vec(block, 0..5)).prop_map(|(first, blocks)| {
        let mut next = Offset::new(first.into());
        let blocks = blocks.into_iter().map(|(numbers, properties)| {
            let (index, published_at_ms, position, length, count, skipped) = numbers;
            // Half of them follow the one before without a hole.
            let first = next.plus(u64::from(skipped.saturating_sub(u32::MAX / 2)));
            let span = BlockSpan { position, length };
            let block = Block { index, first, published_at_ms, span, count, properties };
            next = block.end();
            block
        });
        Record::Page(PageRecord { blocks: blocks.collect() })
    })
}

fn ids_record() -> impl Strategy<Value = Record> {
    let id = any::<(u64, [u8; 16])>().prop_map(|(at_ms, hash)| (at_ms, IdHash(hash)));
    (any::<u64>(), vec(id, 0..5)).prop_map(|(first_number, ids)| Record::Ids(IdsRecord { first_number, ids }))
}

fn producer_record() -> impl Strategy<Value = Record> {
    let routed = vec((any::<u64>(), vec(range(), 0..3)), 0..3);
    (any::<(u64, u64)>(), vec(any::<(u64, u32)>(), 0..5), routed).prop_map(
        |((last, used_at_ms), recent, routed)| {
            let recent =
                recent.into_iter().map(|(first, count)| PublishedBatch { first: Offset::new(first), count });
            let routed = routed
                .into_iter()
                .map(|(sequence, places)| RoutedBatch { sequence: Sequence::new(sequence), places });
            let (recent, routed) = (recent.collect(), routed.collect());
            Record::Producer(ProducerRecord { last: Sequence::new(last), used_at_ms, recent, routed })
        },
    )
}

proptest! {
    #[test]
    fn shard_entries_round_trip(head in head(), items in vec(shard_command(), 0..8)) {
        let proposals: Vec<_> = items.iter().map(|(command, batch)| proposed(command, batch)).collect();
        let payload = encode_entry(head, &proposals);
        let empty = encode_entry(head, &[]);
        prop_assert_eq!(
            payload.len(),
            empty.len() + proposals.iter().map(Proposed::encoded_len).sum::<usize>()
        );
        let entry = decode_entry(&payload).unwrap();
        prop_assert_eq!(entry.head, head);
        let Commands::Shard(commands) = entry.commands else { panic!("commands of the other kind") };
        prop_assert_eq!(commands.len(), items.len());
        for (decoded, (command, batch)) in commands.into_iter().zip(items) {
            let mut expected = command;
            let spans = (span_of(&decoded).copied(), span_of_mut(&mut expected));
            if let (Some(found), Some(block)) = spans {
                let start = found.position as usize;
                prop_assert_eq!(&payload[start..start + found.length as usize], &batch[..]);
                block.position = found.position;
            }
            prop_assert_eq!(decoded, expected);
        }
    }

    #[test]
    fn catalog_entries_round_trip(head in head(), commands in vec(catalog_command(), 1..8)) {
        let proposals: Vec<_> = commands.iter().map(Proposed::catalog).collect();
        let entry = decode_entry(&encode_entry(head, &proposals)).unwrap();
        prop_assert_eq!(entry.head, head);
        prop_assert_eq!(entry.commands, Commands::Catalog(commands));
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode_record(&bytes, &bytes);
        let _ = decode_entry(&Bytes::from(bytes));
    }

    #[test]
    fn damaged_entries_decode_or_fail(
        items in vec(shard_command(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let proposals: Vec<_> = items.iter().map(|(command, batch)| proposed(command, batch)).collect();
        let head = EntryHead { leader_time_ms: 1, replicated_index: 2 };
        let mut payload = encode_entry(head, &proposals).to_vec();
        for (place, byte) in damage {
            let place = place.index(payload.len());
            payload[place] = byte;
        }
        let payload = Bytes::from(payload);
        if let Ok(entry) = decode_entry(&payload)
            && let Commands::Shard(commands) = entry.commands
        {
            for command in commands {
                if let Some(block) = span_of(&command) {
                    prop_assert!((block.position + block.length) as usize <= payload.len());
                }
            }
        }
    }

    #[test]
    fn records_round_trip((key, record) in keyed_record()) {
        let decoded = decode_record(&encode_key(key), &encode_record(&record));
        prop_assert_eq!(decoded, Ok((key, record)));
    }

    #[test]
    fn keys_sort_as_their_bytes((left, _) in keyed_record(), (right, _) in keyed_record()) {
        prop_assert_eq!(left.cmp(&right), encode_key(left).cmp(&encode_key(right)));
        if let RecordKey::Queue { queue, .. } = left {
            prop_assert!(encode_key(left).starts_with(&queue_key_prefix(queue)));
        }
    }
}

#[test]
fn what_a_newer_version_wrote_is_refused() {
    let key = encode_key(RecordKey::Shard);
    let unknown = DecodeError::Unknown { field: "version", value: 2 };
    assert_eq!(decode_record(&key, &[2]), Err(unknown));
    assert_eq!(decode_record(&key, &[]), Err(DecodeError::Missing("version")));
    assert_eq!(decode_record(&[9], &[1]), Err(DecodeError::Unknown { field: "key kind", value: 9 }));
    // A command whose tag is not known here: field 3, length 2, field 15 as a varint.
    let entry = Bytes::from_static(&[0x1a, 2, 0x78, 1]);
    assert_eq!(decode_entry(&entry), Err(DecodeError::Missing("command")));
}

#[test]
fn parts_that_are_not_the_whole_batch_are_refused() {
    let batch = Bytes::from_static(b"batch");
    let run = |count, length| BatchRun { count, length, properties: Properties::default(), delay_ms: 0 };
    let head = EntryHead { leader_time_ms: 0, replicated_index: 0 };
    let decode = |runs: &[BatchRun]| {
        let publish = Proposed::publish(QueueId::new(1), None, 3, batch.clone(), runs, 0);
        decode_entry(&encode_entry(head, &[publish])).err()
    };
    assert_eq!(decode(&[run(1, 2), run(2, 3)]), None);
    for wrong in [[run(1, 2), run(1, 3)], [run(1, 2), run(2, 2)], [run(1, u32::MAX), run(u32::MAX, 9)]] {
        assert_eq!(decode(&wrong), Some(DecodeError::BatchRuns));
    }
}

#[test]
fn commands_of_both_kinds_do_not_mix() {
    let commands = [
        Proposed::shard(&Command::CloseQueue { queue: QueueId::new(1) }),
        Proposed::catalog(&CatalogCommand::DeleteQueue { name: "orders".into(), queue: None }),
    ];
    let head = EntryHead { leader_time_ms: 0, replicated_index: 0 };
    assert_eq!(decode_entry(&encode_entry(head, &commands)), Err(DecodeError::MixedCommands));
}

#[test]
fn batches_for_several_queues_come_back_and_lie_where_they_are_said_to() {
    let head = EntryHead { leader_time_ms: 5, replicated_index: 6 };
    let producer = Some((ProducerId::new(7), Sequence::new(1)));
    let run = |length| BatchRun { count: 1, length, properties: Properties::default(), delay_ms: 9 };
    let batches = vec![
        (QueueId::new(1), 2, Bytes::from_static(b"first"), Vec::new()),
        (QueueId::new(2), 1, Bytes::from_static(b"second"), vec![run(6)]),
    ];
    let payload = encode_entry(head, &[Proposed::publish_together(producer, batches.clone())]);
    let Commands::Shard(commands) = decode_entry(&payload).unwrap().commands else {
        panic!("of the catalog")
    };
    let [Command::PublishTogether { producer: decoded, parts }] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!(*decoded, producer);
    assert_eq!(parts.len(), 2);
    for (part, (queue, count, batch, runs)) in parts.iter().zip(batches) {
        assert_eq!((part.queue, part.count, &part.runs), (queue, count, &runs));
        let start = part.block.position as usize;
        assert_eq!(payload.slice(start..start + part.block.length as usize), batch);
    }
    let twice =
        ["a", "b"].map(|batch| (QueueId::new(1), 1, Bytes::from_static(batch.as_bytes()), Vec::new()));
    let payload = encode_entry(head, &[Proposed::publish_together(None, twice.to_vec())]);
    assert_eq!(decode_entry(&payload), Err(DecodeError::BatchRuns));
}
