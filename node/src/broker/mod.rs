//! The broker core: what a shard's queues, groups and producers become by the entries of its log.
//!
//! Deterministic: no I/O, clock, randomness, async or hash order. The same entries give the same state on every
//! replica. Message bodies are never here; a queue refers to the place in the log where a batch lies.

mod blocks;
mod catalog;
mod closed_queues;
mod command;
mod event;
mod group;
mod live;
mod nodes;
mod outcome;
mod packed;
mod page;
mod producers;
mod properties;
mod queue;
mod recent_ids;
mod record;
mod settings;
mod shard;
mod spill;
#[cfg(test)]
mod tests;
mod topics;

pub use blocks::{Block, BlockSlice, PAGE_BLOCKS};
pub use catalog::{Catalog, CatalogQueue};
pub use command::{
    BlockSpan, CatalogCommand, Command, EachMessage, EntryMeta, Position, PublishPart, Return, Routed,
};
pub use event::Event;
pub use group::{DeadLetter, DeadLetterRun, GiveUpReason, GivenUp, Group, Returned};
pub use live::{Live, LivePart};
pub use nodes::{ClusterNode, NodeAddresses, NodeCommand, NodeOutcome, Standing};
pub use outcome::{CatalogOutcome, Outcome};
pub use producers::{PRODUCER_IDLE_MAX_MS, PublishedBatch, QUEUE_PRODUCERS_MAX};
pub use properties::{BatchRun, Properties};
pub use queue::{Growth, Queue, Waiting};
pub use recent_ids::{IdHash, QUEUE_IDS_MAX};
pub use record::{
    CatalogQueueRecord, CatalogRecord, CatalogTopicRecord, GroupRecord, IdsRecord, PageRecord,
    ProducerRecord, QueuePart, QueueRecord, Record, RecordKey, RestoreError, RoutedBatch, ShardRecord,
};
pub use settings::{Backoff, Overflow, Retention, Settings};
pub use shard::Shard;
pub use spill::{SavedPages, Spill};
pub use topics::{Binding, Topic};
