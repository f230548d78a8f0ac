//! Publishes messages as fast as they are confirmed: `cargo run --example publish -- 127.0.0.1:7101`.

use std::env;

use skein_client::{Client, Message, QueueSettings};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let server = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7101".to_owned());
    let client = Client::connect([server]).await?;
    client.create_queue("orders", QueueSettings::default()).await?;

    let producer = client.producer("orders").build().await?;
    for number in 1..=10_000 {
        let order = Message::new(format!("order {number}")).key(format!("customer {}", number % 100));
        // Waits only when the window is full. Nobody looks at the single confirm: the flush below tells of failures.
        drop(producer.send(order).await?);
    }
    producer.flush().await?;

    let last = producer.send(Message::new("the last order")).await?;
    tracing::info!(offset = %last.await?, "everything is on disk on a majority of nodes");
    producer.close().await?;
    Ok(())
}
