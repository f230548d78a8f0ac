//! One consumer of a group: takes what comes, acks most of it, and records both.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::{RngExt as _, rngs::SmallRng};
use skein_client::{Client, Consumer, Delivery, SettleError, Settled};
use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::CALLS_WAITING_MAX;
use crate::{
    history::{Outcome, Reader, SettlementKind},
    recorder::{Call, Recorder},
    rules::{Pause, Rule},
    stamp,
};

/// A message that is given back waits for up to so long.
const NACK_DELAY_MS: std::ops::Range<u64> = 0..200;

/// One consumer of one group.
pub(super) struct Member {
    pub client: Client,
    pub reader: Reader,
    pub number: u64,
    pub random: SmallRng,
    pub nack_percent: u32,
    pub rule: Option<Rule>,
    /// Nothing is published any more: what is left is to be drained without breaks.
    pub is_over: watch::Receiver<bool>,
    pub recorder: Recorder,
}

type Waiting = mpsc::Sender<(Call, Settled)>;

impl Member {
    /// Begins to consume.
    pub(super) async fn open(&self) -> Result<Consumer> {
        let mut builder = self.client.consumer(&self.reader.queue, &self.reader.group);
        if let Some(credit) = self.rule.and_then(Rule::credit_messages) {
            builder = builder.credit_messages(credit);
        }
        Ok(builder.build().await?)
    }

    /// Consumes until told to stop.
    pub(super) async fn run(mut self, mut consumer: Consumer, mut stop: watch::Receiver<bool>) -> Result<()> {
        let (waiting, settled) = mpsc::channel(CALLS_WAITING_MAX);
        let settled = tokio::spawn(record_settled(self.recorder.clone(), settled));
        while !*stop.borrow() {
            let pause = tokio::select! {
                changed = stop.changed() => {
                    changed.context("the workload is gone")?;
                    None
                }
                delivery = consumer.next() => {
                    let delivery = delivery.context("the consumer ended")??;
                    self.handle(&delivery, &waiting).await?
                }
            };
            if let Some(pause) = pause.filter(|_| !*self.is_over.borrow()) {
                consumer = self.pause(consumer, pause, &mut stop).await?;
            }
        }
        drop(waiting);
        consumer.close().await;
        settled.await.context("the task that waits for acks panicked")
    }

    /// Takes a break, or as much of it as there is time for.
    async fn pause(
        &self,
        consumer: Consumer,
        Pause { lasts, leaves }: Pause,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Consumer> {
        if !leaves {
            // Whether it is told to stop is looked at afterwards, here and below.
            let _ = time::timeout(lasts, stop.changed()).await;
            return Ok(consumer);
        }
        consumer.close().await;
        let _ = time::timeout(lasts, stop.changed()).await;
        self.open().await
    }

    async fn handle(&mut self, delivery: &Delivery, waiting: &Waiting) -> Result<Option<Pause>> {
        let who = (&self.reader, self.number);
        let offset = delivery.offset.get();
        let identity = stamp::open(&delivery.message.body);
        let handling = self.rule.zip(identity.as_ref().ok()).map(|(rule, identity)| rule.handling(identity));
        self.recorder.delivered(who, offset, delivery.attempt, identity);
        // Only first deliveries, so that nothing else is given up for good.
        let returns = delivery.attempt == 1 && self.random.random_range(0..100) < self.nack_percent;
        let fails = handling.and_then(|handling| handling.fails);
        let otherwise = if returns { SettlementKind::Nack } else { SettlementKind::Ack };
        let kind = fails.unwrap_or(otherwise);
        let call = self.recorder.settle_invoked(who, offset, kind);
        let settled = match kind {
            SettlementKind::Ack => delivery.ack(),
            SettlementKind::Reject => delivery.reject(),
            SettlementKind::Nack => {
                delivery.nack_after(Duration::from_millis(self.random.random_range(NACK_DELAY_MS)))
            }
        };
        waiting.send((call, settled)).await.context("nobody waits for acks")?;
        Ok(handling.and_then(|handling| handling.pause))
    }
}

async fn record_settled(recorder: Recorder, mut settled: mpsc::Receiver<(Call, Settled)>) {
    while let Some((call, settled)) = settled.recv().await {
        let outcome = match settled.await {
            Ok(()) => Outcome::Ok(()),
            Err(SettleError::LeaseLost(cause) | SettleError::NotAccepted(cause)) => {
                Outcome::Failed(cause.to_string())
            }
            Err(SettleError::OutcomeUnknown(cause)) => Outcome::Unknown(cause.to_string()),
        };
        recorder.settle_returned(call, outcome);
    }
}
