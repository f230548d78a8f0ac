//! Tests of what is written, and of what is refused when it is read.

use proptest::prelude::*;

use super::*;

const SEED: Seed = Seed(7);

fn record(kind: Kind, payload_bytes: usize) -> Record {
    Record {
        kind,
        shard: ShardId::new(3),
        index: 5,
        term: 9,
        payload: Bytes::from(vec![0xab; payload_bytes]),
    }
}

fn batch(records: &[Record]) -> Vec<u8> {
    let bytes = BATCH_HEADER_BYTES + records.iter().map(Record::encoded_bytes).sum::<usize>();
    // What the buffer was used for before must not shine through.
    let mut out = vec![0xff; pad_to_block(bytes)];
    encode_batch(&mut out, SEED, 42, records.iter());
    out
}

#[test]
fn segment_headers_tell_damage_from_a_newer_version() {
    let header =
        SegmentHeader { log_id: 1, segment: SegmentNumber::new(2), first_batch: 3, segment_bytes: 4 };
    let mut block = vec![0xff; BLOCK_BYTES];
    header.encode(&mut block);
    assert_eq!(SegmentHeader::decode(&block), Ok(header));
    for at in [0, 8, 12, 17, 40, BLOCK_BYTES - 1] {
        block[at] ^= 1;
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderProblem::Unreadable), "byte {at}");
        block[at] ^= 1;
    }
    block[8] = 9;
    let checksum = SegmentHeader::checksum(&block);
    put(&mut block, 12, checksum.to_le_bytes());
    assert_eq!(SegmentHeader::decode(&block), Err(HeaderProblem::NewerVersion { found: 9 }));
    assert_eq!(SegmentHeader::decode(&vec![0; BLOCK_BYTES]), Err(HeaderProblem::Unreadable));
}

#[test]
fn numbers_that_cannot_be_counted_on_from_are_refused() {
    let last = Record { index: u64::MAX, ..record(Kind::Kept, 9) };
    let bytes = batch(&[last]);
    assert_eq!(decode_record(&bytes[BATCH_HEADER_BYTES..], SEED), Err(Unsound::Checksum));
    let mut out = vec![0; BLOCK_BYTES];
    for (number, is_sound) in [(NUMBER_MAX, true), (NUMBER_MAX + 1, false), (u64::MAX, false)] {
        encode_batch(&mut out, SEED, number, [record(Kind::Vote, 1)].iter());
        assert_eq!(BatchHeader::decode(&out, SEED).is_some(), is_sound, "batch {number}");
        let segment = SegmentNumber::FIRST;
        SegmentHeader { log_id: 1, segment, first_batch: number, segment_bytes: 4 }.encode(&mut out);
        assert_eq!(SegmentHeader::decode(&out).is_ok(), is_sound, "first batch {number}");
    }
}

#[test]
fn what_is_left_of_two_torn_batches_is_none() {
    let first = batch(&[record(Kind::Entry, 3000), record(Kind::Entry, 3000)]);
    let other = |index| Record { index, ..record(Kind::Entry, 3000) };
    let second = batch(&[other(6), other(7)]);
    assert_eq!(first.len(), 2 * BLOCK_BYTES);
    // The second record of either starts in the first block, so only this mixture has whole records: the header and
    // first record of one, and the second record of the other.
    let boundary = BATCH_HEADER_BYTES + record_bytes(3000);
    let mixed = [&first[..boundary], &second[boundary..]].concat();
    let header = BatchHeader::decode(&mixed, SEED).unwrap();
    assert!(decode_record(&mixed[BATCH_HEADER_BYTES..], SEED).is_ok());
    assert!(decode_record(&mixed[boundary..], SEED).is_ok());
    assert_eq!(decode_batch(&mixed, &header, SEED), Err(Unsound::Checksum));
}

#[test]
fn another_segments_batch_is_none_here() {
    let bytes = batch(&[record(Kind::Entry, 10)]);
    assert!(BatchHeader::decode(&bytes, Seed(8)).is_none());
    assert_eq!(decode_record(&bytes[BATCH_HEADER_BYTES..], Seed(8)), Err(Unsound::Checksum));
    let (log, segment) = (1, SegmentNumber::new(5));
    assert_ne!(Seed::new(log, segment), Seed::new(log, segment.next()));
    assert_ne!(Seed::new(log, segment), Seed::new(log + 1, segment));
}

#[test]
fn an_unknown_kind_is_not_damage() {
    let mut bytes = batch(&[record(Kind::Entry, 0)]);
    let at = BATCH_HEADER_BYTES;
    bytes[at + 8] = 11;
    let check = header_check(&bytes[at..], SEED);
    put(&mut bytes, at + 9, check);
    let checksum = SEED.checksum(&bytes[at + 4..at + RECORD_HEADER_BYTES]);
    put(&mut bytes, at, checksum.to_le_bytes());
    assert_eq!(decode_record(&bytes[at..], SEED), Err(Unsound::UnknownKind(11)));
}

proptest! {
    #[test]
    fn batches_come_back_as_they_went(
        records in prop::collection::vec((1u8..7, any::<u32>(), any::<u64>(), any::<u64>(), 0usize..3000), 0..12),
    ) {
        let records: Vec<_> = records.into_iter().map(|(kind, shard, index, term, payload_bytes)| Record {
            kind: Kind::from_raw(kind).unwrap(),
            shard: ShardId::new(shard),
            index,
            term,
            payload: Bytes::from(vec![kind; payload_bytes]),
        }).collect();
        let bytes = batch(&records);
        let header = BatchHeader::decode(&bytes, SEED).unwrap();
        prop_assert_eq!((header.number, header.padded_bytes()), (42, bytes.len()));
        let (decoded, damaged) = decode_batch(&bytes, &header, SEED).unwrap();
        prop_assert_eq!((decoded.len(), damaged.len()), (records.len(), 0));
        for ((at, header), record) in decoded.into_iter().zip(records) {
            let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + header.payload_bytes;
            let RecordHeader { kind, shard, index, term, .. } = header;
            let payload = Bytes::copy_from_slice(&bytes[payload]);
            prop_assert_eq!(Record { kind, shard, index, term, payload }, record);
        }
    }

    #[test]
    fn any_flipped_bit_makes_a_batch_unsound_or_tells_which_record_it_hit(bit in 0usize..8 * 1100) {
        let mut bytes = batch(&[record(Kind::Vote, 20), record(Kind::Entry, 1000)]);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let used = BATCH_HEADER_BYTES + record_bytes(20) + RECORD_HEADER_BYTES + 1000;
        let header = BatchHeader::decode(&bytes, SEED);
        let decoded = header.map(|header| decode_batch(&bytes, &header, SEED));
        let (vote, entry) = (BATCH_HEADER_BYTES, BATCH_HEADER_BYTES + record_bytes(20));
        // In a record all but the header that has a checksum of its own; padding means nothing.
        let in_record = |at: usize, payload_bytes| {
            let byte = (bit / 8).wrapping_sub(at);
            byte < 4 || (RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes).contains(&byte)
        };
        let is_padding = bit / 8 >= used || (84..88).contains(&(bit / 8));
        let hit = [(vote, 20), (entry, 1000)].into_iter().find(|(at, bytes)| in_record(*at, *bytes));
        match decoded {
            Some(Ok((records, damaged))) => {
                prop_assert_eq!(records.len(), 2);
                prop_assert_eq!(damaged.first().map(|(at, _)| *at), hit.map(|(at, _)| at));
                prop_assert!(is_padding || hit.is_some(), "byte {}", bit / 8);
            }
            _ => prop_assert!(!is_padding && hit.is_none(), "byte {}", bit / 8),
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_record(&bytes, SEED);
        let _ = Trailer::decode(&bytes, SEED);
        let header = BatchHeader { number: 1, bytes: 150, record_count: 1, records_checksum: 0 };
        let _ = decode_batch(&bytes, &header, SEED);
    }
}
