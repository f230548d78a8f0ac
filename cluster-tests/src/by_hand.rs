//! Consuming message by message, for tests that look at each of them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skein_client::{Client, Consumer, Delivery, Message};
use tokio::time;

/// A message that is due arrives within this, also when a leader has just died.
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// Nothing comes within this that is not to come.
pub const QUIET: Duration = Duration::from_millis(700);

/// The next message.
///
/// # Errors
/// When none comes in time, or the consumer ends.
pub async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let next = time::timeout(ARRIVES_WITHIN, consumer.next()).await.context("nothing was delivered")?;
    Ok(next.context("the consumer ended")??)
}

/// The next messages' bodies, each acked before the next one is taken.
///
/// # Errors
/// Like [`next`], and when an ack fails.
pub async fn take_bodies(consumer: &mut Consumer, count: usize) -> Result<Vec<String>> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let delivery = next(consumer).await.with_context(|| format!("after {bodies:?}"))?;
        bodies.push(body(&delivery.message));
        delivery.ack().await?;
    }
    Ok(bodies)
}

/// Makes sure that nothing comes.
///
/// # Errors
/// When something does.
pub async fn expect_nothing(consumer: &mut Consumer) -> Result<()> {
    if let Ok(delivery) = time::timeout(QUIET, consumer.next()).await {
        let delivery = delivery.context("the consumer ended")??;
        ensure!(false, "{:?} came at offset {}", delivery.message, delivery.offset);
    }
    Ok(())
}

/// Publishes messages with these bodies in one batch.
///
/// # Errors
/// When they are not confirmed.
pub async fn send(client: &Client, queue: &str, bodies: &[&str]) -> Result<()> {
    let messages = bodies.iter().map(|body| Message::new((*body).to_owned())).collect();
    client.send(queue, messages).await?;
    Ok(())
}

/// The body as text.
#[must_use]
pub fn body(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}
