//! The newest entries of all shards, in memory: every tail read is served from here.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use skein_proto::ids::ShardId;

use super::Entry;

/// What an entry is counted as on top of its payload: itself, its place in a queue, and the payload's reference count.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// Entries, bounded in bytes, oldest first out. Those not on disk yet stay whatever the bound: there is nowhere else
/// to read them from.
#[derive(Debug)]
pub(super) struct TailCache {
    /// Of each shard, entries without a gap up to its newest.
    shards: BTreeMap<ShardId, VecDeque<Cached>>,
    bytes: usize,
    bytes_max: usize,
    /// How many entries were ever put in.
    pushed_count: u64,
    /// How many of those are on disk; they get there in the order in which they were put in.
    written_count: u64,
}

#[derive(Debug)]
struct Cached {
    /// How many entries were put in before this one.
    stamp: u64,
    entry: Entry,
}

impl Cached {
    fn bytes(&self) -> usize {
        self.entry.payload.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl TailCache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { shards: BTreeMap::new(), bytes: 0, bytes_max, pushed_count: 0, written_count: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an entry that is not on disk yet. It follows the shard's newest, or the shard has none here.
    pub(super) fn push(&mut self, shard: ShardId, entry: Entry) {
        let cached = Cached { stamp: self.pushed_count, entry };
        self.pushed_count += 1;
        self.bytes += cached.bytes();
        self.shards.entry(shard).or_default().push_back(cached);
    }

    /// The next `count` entries, in the order in which they were put in, are on disk.
    pub(super) fn mark_written(&mut self, count: u64) {
        self.written_count += count;
        assert!(self.written_count <= self.pushed_count, "only what was put in is written");
        self.evict();
    }

    /// Drops the shard's entries from `first_removed` on.
    pub(super) fn truncate(&mut self, shard: ShardId, first_removed: u64) {
        let Some(entries) = self.shards.get_mut(&shard) else {
            return;
        };
        while let Some(cached) = entries.pop_back_if(|cached| cached.entry.index >= first_removed) {
            self.bytes -= cached.bytes();
        }
    }

    /// Drops the shard's entries up to `last_removed`.
    pub(super) fn purge(&mut self, shard: ShardId, last_removed: u64) {
        let Some(entries) = self.shards.get_mut(&shard) else {
            return;
        };
        while let Some(cached) = entries.pop_front_if(|cached| cached.entry.index <= last_removed) {
            self.bytes -= cached.bytes();
        }
    }

    /// The first of the shard's entries that are here.
    pub(super) fn first_index(&self, shard: ShardId) -> Option<u64> {
        self.shards.get(&shard)?.front().map(|cached| cached.entry.index)
    }

    /// The entries from the range's start on that are here, as many as fit into `bytes_max` but at least one; empty
    /// when the first is not here.
    pub(super) fn read(&self, shard: ShardId, range: Range<u64>, bytes_max: usize) -> Vec<Entry> {
        let Some(entries) = self.shards.get(&shard) else {
            return Vec::new();
        };
        let Some(skipped) = entries.front().and_then(|first| range.start.checked_sub(first.entry.index))
        else {
            return Vec::new();
        };
        let mut bytes: usize = 0;
        entries
            .iter()
            .skip(usize::try_from(skipped).unwrap_or(usize::MAX))
            .map(|cached| &cached.entry)
            .take_while(|entry| {
                let is_first = entry.index == range.start;
                bytes = bytes.saturating_add(entry.payload.len());
                entry.index < range.end && (is_first || bytes <= bytes_max)
            })
            .cloned()
            .collect()
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            // A node has few shards, so looking at each costs less than keeping them in order.
            let oldest = self
                .shards
                .values_mut()
                .filter(|entries| !entries.is_empty())
                .min_by_key(|entries| entries.front().map(|cached| cached.stamp));
            let written_count = self.written_count;
            let evicted =
                oldest.and_then(|entries| entries.pop_front_if(|cached| cached.stamp < written_count));
            match evicted {
                Some(cached) => self.bytes -= cached.bytes(),
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const A: ShardId = ShardId::new(1);
    const B: ShardId = ShardId::new(2);

    fn entry(index: u64) -> Entry {
        Entry { index, term: 1, payload: Bytes::from(vec![0; 100]) }
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn the_oldest_written_entry_goes_first_whatever_its_shard() {
        let mut cache = TailCache::new(3 * (100 + ENTRY_OVERHEAD_BYTES));
        for (shard, index) in [(A, 1), (B, 1), (A, 2), (B, 2)] {
            cache.push(shard, entry(index));
        }
        assert_eq!(
            indexes(&cache.read(A, 1..9, usize::MAX)),
            [1, 2],
            "nothing is written, so everything stays"
        );
        cache.mark_written(1);
        assert!(cache.read(A, 1..9, usize::MAX).is_empty());
        assert_eq!(indexes(&cache.read(A, 2..9, usize::MAX)), [2]);
        cache.push(A, entry(3));
        cache.mark_written(1);
        assert_eq!(indexes(&cache.read(B, 2..9, usize::MAX)), [2]);
        assert_eq!(cache.bytes(), 3 * (100 + ENTRY_OVERHEAD_BYTES));
    }

    #[test]
    fn reads_stop_at_the_byte_bound_but_give_one_entry() {
        let mut cache = TailCache::new(usize::MAX);
        (1..=5).for_each(|index| cache.push(A, entry(index)));
        assert_eq!(indexes(&cache.read(A, 2..9, 1)), [2]);
        assert_eq!(indexes(&cache.read(A, 2..9, 250)), [2, 3]);
        assert_eq!(indexes(&cache.read(A, 2..4, usize::MAX)), [2, 3]);
        assert!(cache.read(A, 3..3, usize::MAX).is_empty());
        assert!(cache.read(A, 6..9, usize::MAX).is_empty());
    }

    #[test]
    fn truncation_and_purge_give_their_bytes_back() {
        let mut cache = TailCache::new(usize::MAX);
        (1..=5).for_each(|index| cache.push(A, entry(index)));
        cache.truncate(A, 4);
        cache.purge(A, 1);
        assert_eq!(indexes(&cache.read(A, 2..9, usize::MAX)), [2, 3]);
        cache.purge(A, 9);
        assert_eq!(cache.bytes(), 0);
    }
}
