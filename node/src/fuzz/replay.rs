//! Gives the targets what they started from and what they found: every file of the corpus, and seeds as they are
//! encoded today, whole, cut off, and with single bits flipped.
//!
//! With `SKEIN_WRITE_SEEDS` set, the seeds are written into the corpus.

#![expect(clippy::disallowed_methods, reason = "the corpus is a folder of the repository")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{LENGTH_BYTES, checkpoint, entry, record, segment, snapshot};
use crate::{log, peer, raft};
use skein_proto::ids::ShardId;

type Target = fn(&[u8]) -> bool;

/// How many bits of a seed are flipped, one at a time, and at how many places it is cut.
const FLIPS_MAX: usize = 400;
const CUTS_MAX: usize = 100;

#[test]
fn records() {
    let seeds = log::fuzz::seeds::records().into_iter();
    replay("record", record, &seeds.map(|(name, seed)| (name.to_owned(), seed)).collect::<Vec<_>>());
}

#[test]
fn segments() {
    let seeds = log::fuzz::seeds::directories().into_iter().map(|(name, segments)| {
        let segments: Vec<_> = segments.iter().map(|pieces| join(pieces)).collect();
        (name.to_owned(), segments.join(&[0; LENGTH_BYTES][..]))
    });
    replay("segment", segment, &seeds.collect::<Vec<_>>());
}

#[test]
fn snapshots() {
    let snapshot_pieces = [vec![vec![0]], peer::fuzz::seeds::pieces()].concat();
    let mut seeds = vec![
        ("snapshot".to_owned(), join(&snapshot_pieces)),
        ("append".to_owned(), join(&[vec![1], peer::fuzz::seeds::append_request()])),
    ];
    let messages = (2..).zip(peer::fuzz::seeds::messages());
    seeds.extend(messages.map(|(kind, message)| (format!("message-{kind}"), join(&[vec![kind], message]))));
    replay("snapshot", snapshot, &seeds);
}

#[test]
fn checkpoints() {
    use raft::fuzz::seeds::{catalog_entries, checkpoint as saved, shard_ends, shard_entries};
    let of = |name: &str, shard: u8, entries: &[bytes::Bytes]| {
        let (position, records) = saved(ShardId::new(shard.into()), entries);
        let mut parts = vec![vec![shard], position];
        parts.extend(records.into_iter().flat_map(|(key, value)| [key, value]));
        (name.to_owned(), join(&parts))
    };
    let seeds = vec![
        of("catalog", 0, &catalog_entries()),
        of("shard", 1, &shard_entries()),
        of("end", 1, &shard_ends()),
    ];
    replay("checkpoint", checkpoint, &seeds);
}

#[test]
fn entries() {
    use raft::fuzz::seeds::{catalog_entries, shard_ends, shard_entries};
    let of = |name: &str, first: Vec<u8>, entries: Vec<bytes::Bytes>| {
        let entries = entries.into_iter().map(|entry| entry.to_vec());
        (name.to_owned(), join(&[first].into_iter().chain(entries).collect::<Vec<_>>()))
    };
    let seeds = vec![
        of("catalog", vec![0], catalog_entries()),
        of("shard", vec![1], shard_entries()),
        of("end", vec![1], shard_ends()),
        of("messages", vec![], messages()),
    ];
    replay("entry", entry, &seeds);
}

/// Batches of messages, as clients encode them.
fn messages() -> Vec<bytes::Bytes> {
    use prost::Message as _;
    use skein_proto::broker::{Message, MessageBatch};
    let headers = [("trace".to_owned(), bytes::Bytes::from_static(b"1"))].into();
    let message = Message { body: "body".into(), key: "key".into(), headers, ..Message::default() };
    let other = Message { message_id: "id".to_owned(), ..message.clone() };
    vec![MessageBatch { messages: vec![message, Message::default(), other] }.encode_to_vec().into()]
}

fn replay(target: &str, run: Target, seeds: &[(String, Vec<u8>)]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    for (name, seed) in seeds {
        assert!(run(seed), "the seed {name} of {target} is not understood");
        if env::var_os("SKEIN_WRITE_SEEDS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(corpus.join(name), seed).unwrap();
        }
    }
    for path in files(&corpus) {
        run(&fs::read(&path).unwrap());
    }
    for (_, seed) in seeds {
        let bits = seed.len() * 8;
        for bit in (0..bits).step_by(bits.div_ceil(FLIPS_MAX)) {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            run(&flipped);
        }
        for cut in (0..seed.len()).step_by(seed.len().div_ceil(CUTS_MAX)) {
            run(&seed[..cut]);
        }
    }
}

fn files(corpus: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn join(parts: &[Vec<u8>]) -> Vec<u8> {
    let part = |part: &Vec<u8>| {
        let length = u16::try_from(part.len()).expect("parts of seeds are small");
        [&length.to_le_bytes()[..], part].concat()
    };
    parts.iter().flat_map(part).collect()
}
