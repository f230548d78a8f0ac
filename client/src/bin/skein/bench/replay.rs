//! Reading everything again that a measurement published: how fast one consumer of each queue gets through a backlog.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, future, stream::FuturesUnordered};
use skein_client::{Client, Position};

/// The group that reads again.
const GROUP: &str = "bench-replay";

/// What was read again, and how long it took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Replayed {
    pub(super) messages: u64,
    pub(super) body_bytes: u64,
    pub(super) took: Duration,
}

/// Reads all queues from their beginning, side by side, and acks everything.
pub(super) async fn replay(client: &Client, queues: &[String], credit: u32) -> anyhow::Result<Replayed> {
    let started = Instant::now();
    let read = future::try_join_all(queues.iter().map(|queue| replay_queue(client, queue, credit))).await?;
    let mut replayed = Replayed { took: started.elapsed(), ..Replayed::default() };
    for (messages, body_bytes) in read {
        replayed.messages += messages;
        replayed.body_bytes += body_bytes;
    }
    Ok(replayed)
}

/// How many messages a queue has, and the bytes of their bodies.
async fn replay_queue(client: &Client, queue: &str, credit: u32) -> anyhow::Result<(u64, u64)> {
    client.create_group(queue, GROUP, Position::First).await?;
    let wanted = client.get_group(queue, GROUP).await?.unacked_count;
    let mut consumer = client.consumer(queue, GROUP).credit_messages(credit).build().await?;
    let mut acks = FuturesUnordered::new();
    let (mut messages, mut body_bytes) = (0, 0);
    while messages < wanted {
        tokio::select! {
            batch = consumer.next_batch() => {
                let batch = batch.context("the consumer ended")??;
                messages += u64::from(batch.message_count());
                for message in batch.messages() {
                    body_bytes += message?.body.len() as u64;
                }
                acks.push(batch.ack());
            }
            Some(acked) = acks.next(), if !acks.is_empty() => acked?,
        }
    }
    consumer.close().await;
    Ok((messages, body_bytes))
}
