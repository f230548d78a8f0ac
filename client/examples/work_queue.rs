//! Workers that share a queue, retry what fails, and give up after five attempts:
//! `cargo run --example work_queue -- 127.0.0.1:7101`.

use std::{
    env,
    io::{self, Write},
    time::Duration,
};

use skein_client::{Client, Consumer, Delivery, Message, QueueSettings};
use tokio::{signal, task::JoinSet};

const WORKERS: usize = 3;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let server = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7101".to_owned());
    let client = Client::connect([server]).await?;
    client.create_queue("resize.failed", QueueSettings::default()).await?;
    let settings = QueueSettings {
        max_deliveries: Some(5),
        dead_letter_queue: Some("resize.failed".to_owned()),
        lease: Some(Duration::from_secs(10)),
        ..QueueSettings::default()
    };
    client.create_queue("resize", settings).await?;
    let pictures = ["goose.png", "skein.png", "broken.png", "flock.png"];
    client.send("resize", pictures.map(Message::new).to_vec()).await?;

    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        // A worker that takes one picture at a time leaves the others to its colleagues.
        let consumer = client.consumer("resize", "workers").credit_messages(1).build().await?;
        workers.spawn(work(worker, consumer));
    }
    signal::ctrl_c().await?;
    Ok(())
}

async fn work(worker: usize, mut consumer: Consumer) -> anyhow::Result<()> {
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        match resize(worker, &delivery) {
            Ok(()) => delivery.ack().await?,
            Err(_) => delivery.nack_after(Duration::from_secs(1)).await?,
        }
    }
    Ok(())
}

fn resize(worker: usize, delivery: &Delivery) -> anyhow::Result<()> {
    let picture = std::str::from_utf8(&delivery.message.body)?;
    writeln!(io::stdout(), "worker {worker}: {picture}, attempt {}", delivery.attempt)?;
    anyhow::ensure!(!picture.starts_with("broken"), "this picture cannot be read");
    Ok(())
}
