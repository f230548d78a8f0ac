//! Ids and positions: one type each, so that a shard is never taken for a node nor an offset for an index.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($raw);

        impl $name {
            /// Wraps the number that travels on the wire and lies on disk.
            #[must_use]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The number that travels on the wire and lies on disk.
            #[must_use]
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A broker process. Given once, never used again.
    NodeId(u64)
}
id! {
    /// A Raft group. Shard 0 is the catalog; the others carry messages.
    ShardId(u32)
}
id! {
    /// A queue, over its whole life; a queue created again under the same name has another id.
    QueueId(u64)
}
id! {
    /// A topic, over its whole life.
    TopicId(u64)
}
id! {
    /// A consumer group of one queue, numbered within it.
    GroupId(u32)
}
id! {
    /// A producer, chosen at random by the client. See `PublishOpen` in the schema.
    ProducerId(u64)
}
id! {
    /// The number of a batch among those of one producer to one queue: 1, 2, 3, ...
    Sequence(u64)
}
id! {
    /// The position of a message in its queue: 0, 1, 2, ... without gaps.
    Offset(u64)
}

impl ShardId {
    /// The shard that knows nodes, shards and queues.
    pub const CATALOG: Self = Self::new(0);
}

impl ProducerId {
    /// An id that only these numbers decide, in their order, and that no others are likely to have (the finaliser of
    /// `SplitMix64`, Steele, Lea and Flood 2014). For a message that whoever comes next sends again, and that must be
    /// stored once.
    #[must_use]
    pub fn mixed<const N: usize>(parts: [u64; N]) -> Self {
        let mixed = parts.into_iter().fold(0, |mixed: u64, part| {
            let mut z = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        // 0 asks for no deduplication.
        Self(mixed.max(1))
    }
}

impl Offset {
    /// The first offset of every queue.
    pub const ZERO: Self = Self::new(0);

    /// The offset `count` messages later.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// How many messages lie from `earlier` up to, not including, this one.
    ///
    /// # Panics
    /// When `earlier` comes after this offset.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.checked_sub(earlier.0).expect("offsets compared in the wrong order")
    }
}

impl Sequence {
    /// The sequence of a producer's first batch.
    pub const FIRST: Self = Self::new(1);

    /// The sequence of the batch that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
