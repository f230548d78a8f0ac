//! Reads what was handed to one consumer, and acks what its group does not want.

use std::sync::Arc;

use bytes::Bytes;
use skein_proto::ids::Offset;
use tonic::Status;

use super::{
    filter::{self, Filter},
    status,
};
use crate::{
    batch::{self, Fields},
    dispatch::{ConsumerId, GroupKey},
    offsets::OffsetRange,
    planted::{Bug, is_planted},
    raft::Replica,
    shard::{BodyError, BodyReader, DeliveryHandle, OutboxItem, SettleItem, SettleKind},
};

/// Messages of a delivery that the group wants, with consecutive offsets.
pub(super) struct Wanted {
    pub(super) first: Offset,
    pub(super) count: u32,
    pub(super) batch: Bytes,
}

/// One consumer's reader.
pub(super) struct WantedReader {
    key: GroupKey,
    replica: Arc<Replica>,
    delivery: DeliveryHandle,
    bodies: BodyReader,
    /// The group's filter, as the core keeps it and as it is asked.
    kept: Option<Arc<[u8]>>,
    filter: Option<Filter>,
    unwanted: Vec<SettleItem>,
    /// How often the group had been moved when the consumer came.
    seek_count: u32,
}

impl WantedReader {
    pub(super) fn new(
        key: GroupKey,
        replica: Arc<Replica>,
        delivery: DeliveryHandle,
        bodies: BodyReader,
    ) -> Self {
        let (kept, filter, unwanted) = (None, None, Vec::new());
        let mut reader = Self { key, replica, delivery, bodies, kept, filter, unwanted, seek_count: 0 };
        reader.seek_count = reader.seek_count_now();
        reader
    }

    /// Whether the group goes on from elsewhere since the consumer came.
    pub(super) fn was_moved(&self) -> bool {
        self.seek_count_now() != self.seek_count
    }

    fn seek_count_now(&self) -> u32 {
        let GroupKey { queue, group } = self.key;
        self.replica
            .with_messages(|shard| Some(shard.queue(queue)?.group(group)?.seek_count()))
            .unwrap_or(self.seek_count)
    }

    /// The messages of a delivery that the group wants. What was purged after it was handed out is left out; its lease
    /// ends by itself.
    pub(super) async fn read(&mut self, item: &OutboxItem) -> Result<Vec<Wanted>, Status> {
        let (queue, slice) = (self.key.queue, &item.slice);
        let read = match self.bodies.read(queue, slice).await {
            Ok(batch) => Ok(vec![(item.delivery.first, item.delivery.count, batch)]),
            Err(BodyError::Gone { .. }) => self.bodies.read_left(queue, slice).await,
            Err(error) => Err(error),
        };
        let parts = read.map_err(|error| status::from_body(&error))?;
        let parts = parts.into_iter().map(|(first, count, batch)| Wanted { first, count, batch });
        Ok(match self.filter(item.filter.as_ref()).is_some() {
            true => parts.flat_map(|part| self.wanted_of(item.delivery.consumer, &part)).collect(),
            false => parts.collect(),
        })
    }

    /// What the group's filter wants of some messages. Of the others it takes note.
    fn wanted_of(&mut self, consumer: ConsumerId, all: &Wanted) -> Vec<Wanted> {
        let wants = |message: &[u8]| {
            self.filter.as_ref().is_none_or(|filter| filter.wants(&Fields::of(message)))
                || is_planted(Bug::FilterIgnored)
        };
        let mut first = all.first;
        let mut wanted = Vec::new();
        for (is_wanted, count, batch) in batch::split(&all.batch, wants) {
            if is_wanted {
                wanted.push(Wanted { first, count, batch });
            } else {
                let range = OffsetRange::new(first, count.into());
                self.unwanted.push(SettleItem { consumer, range, kind: SettleKind::Ack });
            }
            first = first.plus(count.into());
        }
        wanted
    }

    /// The group's filter, which may be another one than the last time.
    fn filter(&mut self, kept: Option<&Arc<[u8]>>) -> Option<&Filter> {
        if kept != self.kept.as_ref() {
            self.kept = kept.cloned();
            // It was checked before it was replicated.
            let decoded = kept.and_then(|kept| filter::decode(kept));
            self.filter = decoded.and_then(|filter| Filter::new(&filter).ok());
        }
        self.filter.as_ref()
    }

    /// Acks what was read and is not wanted; says whether there was any. When it cannot be replicated, this node stops
    /// leading and somebody else reads it again.
    pub(super) async fn ack_unwanted(&mut self) -> bool {
        let items = std::mem::take(&mut self.unwanted);
        let has_any = !items.is_empty();
        if has_any {
            drop(self.delivery.settle_later(self.key, items).await);
        }
        has_any
    }
}
