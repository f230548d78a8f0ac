//! Consumes in batches, which is the fastest way: `cargo run --example consume -- 127.0.0.1:7101`.

use std::{
    env,
    io::{self, Write},
};

use skein_client::Client;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let server = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7101".to_owned());
    let client = Client::connect([server]).await?;

    let mut consumer = client.consumer("orders", "statistics").credit_messages(10_000).build().await?;
    while let Some(batch) = consumer.next_batch().await {
        let batch = batch?;
        let mut body_bytes = 0;
        for message in batch.messages() {
            body_bytes += message?.body.len();
        }
        writeln!(
            io::stdout(),
            "{} messages from offset {}, {body_bytes} bytes",
            batch.message_count(),
            batch.first_offset()
        )?;
        // Acks the whole batch. Not waiting for the answer lets acks gather; what an ack is lost for comes again.
        drop(batch.ack());
    }
    Ok(())
}
