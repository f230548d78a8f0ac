//! The producers and consumers of a measurement. They share the machine with the brokers, so each message costs as
//! little as possible here.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use skein_client::{Confirm, Consumer, DeliveryBatch, Producer};
use tokio::sync::watch;

use super::{
    body::{BodyMaker, Stamp},
    report::Latency,
    shape::Shape,
    tally::SequenceSet,
};

/// What happened so far, of all producers and consumers.
#[derive(Debug)]
pub(super) struct Counters {
    began: Instant,
    sent_count: AtomicU64,
    confirmed_count: AtomicU64,
    received_count: AtomicU64,
    acked_count: AtomicU64,
    last_confirm_ns: AtomicU64,
    gap_ns_max: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent_count: u64,
    pub(super) confirmed_count: u64,
    pub(super) received_count: u64,
    pub(super) acked_count: u64,
}

/// What one producer did.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) producer: u32,
    pub(super) shape: Shape,
    /// Those that groups want.
    pub(super) confirmed: SequenceSet,
    pub(super) latency: Latency,
}

/// What one consumer received, by producer.
#[derive(Debug, Default)]
pub(super) struct Consumed {
    pub(super) received: Vec<SequenceSet>,
    pub(super) duplicated_count: u64,
    pub(super) latency: Latency,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            sent_count: AtomicU64::new(0),
            confirmed_count: AtomicU64::new(0),
            received_count: AtomicU64::new(0),
            acked_count: AtomicU64::new(0),
            last_confirm_ns: AtomicU64::new(0),
            gap_ns_max: AtomicU64::new(0),
        }
    }

    pub(super) fn snapshot(&self) -> Counts {
        Counts {
            sent_count: self.sent_count.load(Ordering::Relaxed),
            confirmed_count: self.confirmed_count.load(Ordering::Relaxed),
            received_count: self.received_count.load(Ordering::Relaxed),
            acked_count: self.acked_count.load(Ordering::Relaxed),
        }
    }

    /// The longest time between two confirms, whoever got them.
    pub(super) fn gap_max(&self) -> Duration {
        Duration::from_nanos(self.gap_ns_max.load(Ordering::Relaxed))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("a measurement ends within 500 years")
    }

    fn on_confirmed(&self, count: u64, now_ns: u64) {
        self.confirmed_count.fetch_add(count, Ordering::Relaxed);
        let last_ns = self.last_confirm_ns.fetch_max(now_ns, Ordering::Relaxed);
        // The first confirm ends no gap: connecting is not what is measured.
        if last_ns > 0 {
            self.gap_ns_max.fetch_max(now_ns.saturating_sub(last_ns), Ordering::Relaxed);
        }
    }
}

/// What one producer is to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orders {
    pub(super) index: u32,
    pub(super) body_bytes: usize,
    pub(super) window: usize,
    pub(super) shape: Shape,
}

/// Publishes as fast as the window allows until told to stop, then waits for the confirms.
pub(super) async fn publish(
    producer: Producer,
    orders: Orders,
    counters: Arc<Counters>,
    publishing: watch::Receiver<bool>,
) -> anyhow::Result<Published> {
    let Orders { index, body_bytes, window, shape } = orders;
    let mut bodies = BodyMaker::new(body_bytes);
    let mut published = Published { producer: index, shape, ..Published::default() };
    let mut waiting: VecDeque<(Confirm, Stamp)> = VecDeque::new();
    let mut sequence = 0;
    while *publishing.borrow() {
        // Room first, time second: a message is on its way from when it may go.
        while waiting.len() >= window {
            wait_for_first(&mut waiting, &mut published, &counters).await;
        }
        let stamp = Stamp { producer: index, sequence, sent_ns: counters.now_ns() };
        let confirm = producer.send(shape.message(index, sequence, bodies.make(stamp))).await?;
        waiting.push_back((confirm, stamp));
        counters.sent_count.fetch_add(1, Ordering::Relaxed);
        sequence += 1;
        take_confirmed(&mut waiting, &mut published, &counters);
    }
    while !waiting.is_empty() {
        wait_for_first(&mut waiting, &mut published, &counters).await;
    }
    // What failed was not counted as confirmed; closing has nothing to add.
    let _ = producer.close().await;
    Ok(published)
}

/// Waits for the oldest confirm, and takes those that have arrived with it.
async fn wait_for_first(
    waiting: &mut VecDeque<(Confirm, Stamp)>,
    published: &mut Published,
    counters: &Counters,
) {
    let Some((confirm, stamp)) = waiting.pop_front() else { return };
    let outcome = confirm.await;
    let now_ns = counters.now_ns();
    if outcome.is_ok() {
        published.on_confirmed(stamp, now_ns);
        counters.on_confirmed(1, now_ns);
    }
    take_confirmed(waiting, published, counters);
}

/// Takes the confirms that have arrived, all at one time.
fn take_confirmed(waiting: &mut VecDeque<(Confirm, Stamp)>, published: &mut Published, counters: &Counters) {
    let mut now_ns = None;
    let mut confirmed_count = 0;
    while let Some((outcome, stamp)) =
        waiting.front().and_then(|(confirm, stamp)| Some((confirm.try_get()?, *stamp)))
    {
        waiting.pop_front();
        if outcome.is_ok() {
            published.on_confirmed(stamp, *now_ns.get_or_insert_with(|| counters.now_ns()));
            confirmed_count += 1;
        }
    }
    if let Some(now_ns) = now_ns {
        counters.on_confirmed(confirmed_count, now_ns);
    }
}

impl Published {
    fn on_confirmed(&mut self, stamp: Stamp, now_ns: u64) {
        if self.shape.wants(stamp.sequence) {
            self.confirmed.insert(stamp.sequence);
        }
        self.latency.record_ns(now_ns.saturating_sub(stamp.sent_ns));
    }
}

/// Receives and acks until told to stop.
pub(super) async fn consume(
    mut consumer: Consumer,
    producer_count: u32,
    counters: Arc<Counters>,
    mut consuming: watch::Receiver<bool>,
) -> anyhow::Result<Consumed> {
    let received = vec![SequenceSet::default(); producer_count as usize];
    let mut consumed = Consumed { received, ..Consumed::default() };
    let mut acks = FuturesUnordered::new();
    loop {
        tokio::select! {
            batch = consumer.next_batch() => {
                let Some(batch) = batch.transpose()? else { break };
                let count = u64::from(batch.message_count());
                consumed.on_batch(&batch, counters.now_ns())?;
                counters.received_count.fetch_add(count, Ordering::Relaxed);
                acks.push(batch.ack().map(move |answer| answer.map_or(0, |()| count)));
            }
            Some(acked_count) = acks.next(), if !acks.is_empty() => {
                counters.acked_count.fetch_add(acked_count, Ordering::Relaxed);
            }
            _ = consuming.wait_for(|consuming| !consuming) => break,
        }
    }
    consumer.close().await;
    Ok(consumed)
}

impl Consumed {
    fn on_batch(&mut self, batch: &DeliveryBatch, now_ns: u64) -> anyhow::Result<()> {
        for message in batch.messages() {
            let body = message?.body;
            let stamp = Stamp::read(&body);
            let stamp = stamp.filter(|stamp| (stamp.producer as usize) < self.received.len());
            let stamp = stamp
                .ok_or_else(|| anyhow::anyhow!("a message arrived that this measurement did not send"))?;
            if !self.received[stamp.producer as usize].insert(stamp.sequence) {
                self.duplicated_count += 1;
            }
            self.latency.record_ns(now_ns.saturating_sub(stamp.sent_ns));
        }
        Ok(())
    }
}
