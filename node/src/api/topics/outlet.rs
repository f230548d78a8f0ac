//! A queue that a topic passes messages on to: the way there, or to each of its partitions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, future};
use skein_proto::{
    ids::QueueId,
    node::{Confirm, Reason, Routed},
    partitions,
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    fan_out::FanOut,
    spread::{Shares, Spread},
    target::{Confirmed, Target},
};
use crate::api::{Api, names::QueueRef, status};

/// A partition that is about to hear how many there are is asked again for so long ...
const HEAR_WAIT_MAX: Duration = Duration::from_secs(2);

/// ... and this often.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// One queue of a topic.
pub(super) struct Outlet {
    /// To the queue, or to its partitions in their order.
    ways: Vec<Way>,
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
        let (queues, spread) = match known(api, queue) {
            Some(known) => known,
            None => return Ok(None),
        };
        let mut outlet = Self { ways: Vec::with_capacity(queues.len()), spread };
        for queue in queues {
            match outlet.add(api, queue, producer).await {
                Err(status) if status::reason_of(&status) == Some(Reason::QueueNotFound) => return Ok(None),
                added => added?,
            }
        }
        Ok(Some(outlet))
    }

    async fn add(&mut self, api: &Arc<Api>, queue: QueueRef, producer: u64) -> Result<(), Status> {
        let deadline = Instant::now() + HEAR_WAIT_MAX;
        let spread_over = self.spread.as_ref().map_or(0, Spread::partitions);
        let (target, stored) = loop {
            match Target::open(api, queue.clone(), producer, spread_over).await {
                Err(status) if status::is_not_heard_yet(&status) && Instant::now() < deadline => {
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
                opened => break opened?,
            }
        };
        if let Some(spread) = &mut self.spread {
            spread.note_stored(stored);
        }
        self.ways.push(Way { target, last_sequence: 0, confirmed: Arc::default() });
        Ok(())
    }

    /// Sends the messages at these places on their way, and adds what will be answered for them to `confirmed`.
    pub(super) async fn send(
        &mut self,
        sequence: u64,
        batch: &FanOut,
        places: &[u32],
        confirmed: &mut Vec<Confirmed>,
    ) -> Result<(), Status> {
        let Some(spread) = &mut self.spread else {
            confirmed.push(self.ways[0].send(sequence, batch.share(places), places).await?);
            return Ok(());
        };
        let Shares { places, stored } = spread.share(sequence, places, batch);
        if stored > 0 {
            let there = Confirm { sequence, duplicate: true, routed_copies: stored, ..Confirm::default() };
            confirmed.push(future::ready(Ok(there)).boxed());
        }
        for (partition, places) in places {
            let way = &mut self.ways[partition as usize];
            confirmed.push(way.send(sequence, batch.share(&places), &places).await?);
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
                Err(status) if status::reason_of(&status) == Some(Reason::QueueNotFound) => {
                    Ok(Confirm { sequence, ..Confirm::default() })
                }
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
