//! A queue that a topic passes messages on to: the way there, or to each of its partitions.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt as _, future};
use skein_proto::{
    ids::QueueId,
    node::{Confirm, Reason, Routed, RoutedBatch},
    partitions,
};
use tonic::Status;

use super::{
    fan_out::FanOut,
    spread::{Shares, Spread},
    target::{Confirmed, Target},
};
use crate::api::{Api, names::QueueRef, partitions::until_heard, status};

/// One queue of a topic.
pub(super) struct Outlet {
    api: Arc<Api>,
    producer: u64,
    /// The queue, or its partitions in their order.
    queues: Vec<QueueRef>,
    /// The ways there, as far as they were needed.
    ways: BTreeMap<u32, Way>,
    /// Nothing for a queue without partitions.
    spread: Option<Spread>,
}

struct Way {
    target: Target,
    /// The last batch of which it got anything; 0 for none.
    last_sequence: u64,
    /// The last one that it has confirmed.
    confirmed: Arc<AtomicU64>,
}

impl Outlet {
    /// Opens the way to a queue for a producer. Nothing when the queue does not exist any more.
    pub(super) async fn open(api: &Arc<Api>, queue: QueueId, producer: u64) -> Result<Option<Self>, Status> {
        let Some((queues, spread)) = known(api, queue) else { return Ok(None) };
        let mut outlet = Self { api: Arc::clone(api), producer, queues, ways: BTreeMap::new(), spread };
        // What is looked for may be in any partition. Nothing is, of one that asks for no deduplication.
        let needed = if producer == 0 { 0..0 } else { 0..outlet.queues.len() };
        let opened =
            future::try_join_all(outlet.queues[needed].iter().map(|queue| outlet.way_to(queue))).await;
        match opened {
            Err(status) if is_not_found(&status) => return Ok(None),
            opened => {
                for (place, (way, stored)) in (0..).zip(opened?) {
                    outlet.ways.insert(place, way);
                    outlet.spread.iter_mut().for_each(|spread| spread.note_stored(&stored));
                }
            }
        }
        Ok(Some(outlet))
    }

    /// Opens the way to one queue, which was deleted when it is not found: a node that only may not have heard of it
    /// says something else.
    async fn way_to(&self, queue: &QueueRef) -> Result<(Way, Vec<RoutedBatch>), Status> {
        let spread_over = self.spread.as_ref().map_or(0, Spread::partitions);
        let open = || Target::open(&self.api, queue.clone(), self.producer, spread_over);
        let (target, stored) = until_heard(open).await?;
        Ok((Way { target, last_sequence: 0, confirmed: Arc::default() }, stored))
    }

    /// Sends the messages at these places on their way, and adds what will be answered for them to `confirmed`.
    pub(super) async fn send(
        &mut self,
        sequence: u64,
        batch: &FanOut,
        places: &[u32],
        confirmed: &mut Vec<Confirmed>,
    ) -> Result<(), Status> {
        let shares = match &mut self.spread {
            Some(spread) => spread.share(sequence, places, batch),
            None => Shares { places: [(0, places.to_vec())].into(), stored: 0 },
        };
        if shares.stored > 0 {
            let routed_copies = shares.stored;
            let there = Confirm { sequence, duplicate: true, routed_copies, ..Confirm::default() };
            confirmed.push(future::ready(Ok(there)).boxed());
        }
        for (partition, places) in shares.places {
            if !self.ways.contains_key(&partition) {
                match self.way_to(&self.queues[partition as usize]).await {
                    // Deleted a moment ago, bindings and all.
                    Err(status) if is_not_found(&status) => continue,
                    opened => self.ways.insert(partition, opened?.0),
                };
            }
            if let Some(way) = self.ways.get_mut(&partition) {
                confirmed.push(way.send(sequence, batch.share(&places), &places).await?);
            }
        }
        Ok(())
    }
}

impl Way {
    async fn send(&mut self, sequence: u64, share: Bytes, places: &[u32]) -> Result<Confirmed, Status> {
        let copies = u32::try_from(places.len()).expect("no more than the messages of a batch");
        let routed = Routed { follows: self.follows(), places: places.to_vec() };
        self.last_sequence = sequence;
        let last_confirmed = Arc::clone(&self.confirmed);
        let confirmed = self.target.send(sequence, share, routed).await?;
        let confirm = async move {
            match confirmed.await {
                Ok(confirm) => {
                    last_confirmed.fetch_max(sequence, Ordering::Relaxed);
                    Ok(Confirm { routed_copies: copies, ..confirm })
                }
                // Deleted a moment ago, bindings and all.
                Err(status) if is_not_found(&status) => Ok(Confirm { sequence, ..Confirm::default() }),
                Err(status) => Err(status),
            }
        };
        Ok(confirm.boxed())
    }

    /// The batch that must be there before the next one: the last one, while nobody knows whether it is. Later on the
    /// queue may have forgotten it.
    fn follows(&self) -> u64 {
        if self.last_sequence > self.confirmed.load(Ordering::Relaxed) { self.last_sequence } else { 0 }
    }
}

fn is_not_found(status: &Status) -> bool {
    status::reason_of(status) == Some(Reason::QueueNotFound)
}

/// A queue, or the partitions of one and how messages are spread over them, as far as this node knows.
fn known(api: &Api, queue: QueueId) -> Option<(Vec<QueueRef>, Option<Spread>)> {
    api.groups.catalog().replica().with_catalog(|catalog| {
        let name = catalog.target_name(queue)?;
        let queue = |name: &str| Some(QueueRef::new(name, catalog.queue(name)?));
        match catalog.partitions(name) {
            None => Some((vec![queue(name)?], None)),
            Some(count) => {
                let all = (0..count).map(|partition| queue(&partitions::name(name, partition)));
                Some((all.collect::<Option<_>>()?, Some(Spread::over(count))))
            }
        }
    })
}
