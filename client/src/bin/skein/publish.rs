//! `skein publish`: messages from the command line, a file or stdin.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use skein_client::{Client, Confirm, Message, Producer, Reason, Routed};
use tokio::{
    fs::File,
    io::{self, AsyncBufReadExt, AsyncRead, BufReader},
    time,
};

use crate::{
    args,
    output::{Output, progress_bar},
};

/// How often a paced publisher looks at the clock. Coarser than a timer's resolution, finer than anybody notices.
const PACE_INTERVAL: Duration = Duration::from_millis(10);

const EXAMPLES: &str = "\
Examples:
  skein publish orders 'two geese' --key customer-7 --header source=shop
  skein publish orders --file orders.jsonl
  seq 1000 | skein publish orders --rate 100
  skein publish orders ping --count 1000
  skein publish orders 'wake up' --delay 10m --priority 9
  skein publish events 'order 7' --key orders.7.created --mandatory";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PublishArgs {
    /// The queue or topic to publish to.
    queue: String,
    /// The body. Without it, each line of the file or of stdin is a message.
    message: Option<String>,
    /// Publish each line of this file.
    #[arg(long, conflicts_with = "message")]
    file: Option<PathBuf>,
    /// How often to publish MESSAGE, or how many lines to publish at most.
    #[arg(long)]
    count: Option<u64>,
    /// Messages a second at most.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Key of the messages.
    #[arg(long, default_value = "")]
    key: String,
    /// Header of the messages; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = args::header)]
    headers: Vec<(String, String)>,
    /// Id by which the application knows the messages.
    #[arg(long, value_name = "ID", default_value = "")]
    message_id: String,
    /// How long they may wait for a consumer before they are given up, such as 30s or 5m.
    #[arg(long, value_name = "TIME", value_parser = args::time_to_live)]
    ttl: Option<Duration>,
    /// How long they are held back.
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    delay: Option<Duration>,
    /// Until when they are held back, such as 2026-11-26T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = args::time)]
    at: Option<SystemTime>,
    /// 0 to 9: of the messages that wait, those with the highest go first.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=9))]
    priority: u8,
    /// Fail when the topic has no queue for a message, which is otherwise dropped.
    #[arg(long)]
    mandatory: bool,
}

pub(crate) async fn run(client: &Client, args: PublishArgs, output: &Output) -> anyhow::Result<()> {
    let is_topic = is_topic(client, &args.queue).await?;
    if is_topic
        && let Some(body) = &args.message
        && args.count.is_none_or(|count| count == 1)
    {
        return publish_one(client, &args, body, output).await;
    }
    let producer = client.producer(&args.queue);
    let producer = if args.mandatory { producer.mandatory() } else { producer }.build().await?;
    let mut publisher = Publisher::new(&producer, &args);
    let sent = match (&args.message, &args.file) {
        (Some(body), _) => publisher.repeat(body, args.count.unwrap_or(1)).await,
        (None, Some(path)) => {
            let file = File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
            publisher.lines(file, args.count).await
        }
        (None, None) => publisher.lines(io::stdin(), args.count).await,
    };
    let (first, last, sent_count) = publisher.finish();
    let closed = producer.close().await;
    sent?;
    closed.context("not everything was published")?;
    let Some(first) = first else {
        bail!("there was nothing to publish; give a message, --file, or lines on stdin");
    };
    let first = first.await?;
    let last = match last {
        Some(last) => last.await?,
        None => first,
    };
    if is_topic {
        let value = json!({ "topic": args.queue, "published": sent_count });
        output.result(&value, || format!("published {sent_count} messages to topic {}", args.queue))?;
        return Ok(());
    }
    let value = json!({
        "queue": args.queue, "published": sent_count, "first_offset": first.get(), "last_offset": last.get()
    });
    output.result(&value, || match sent_count {
        1 => format!("published at offset {first}"),
        _ => format!("published {sent_count} messages at offsets {first} to {last}"),
    })?;
    Ok(())
}

/// What the arguments say of each message.
fn template(args: &PublishArgs) -> Message {
    Message {
        ttl: args.ttl,
        delay: args.delay,
        deliver_at: args.at,
        priority: args.priority,
        message_id: args.message_id.clone(),
        ..Message::new("").key(args.key.clone()).headers(args.headers.iter().cloned())
    }
}

/// Publishes one message to a topic, and tells who got it.
async fn publish_one(client: &Client, args: &PublishArgs, body: &str, output: &Output) -> anyhow::Result<()> {
    let message = Message { body: body.to_owned().into(), ..template(args) };
    let Routed { copies, .. } = client.publish_to_topic(&args.queue, vec![message], args.mandatory).await?;
    let topic = &args.queue;
    output.result(&json!({ "topic": topic, "published": 1, "copies": copies }), || match copies {
        0 => format!("published to topic {topic}; no queue wants it, and it is dropped"),
        1 => format!("published to topic {topic}; one queue got it"),
        _ => format!("published to topic {topic}; {copies} queues got it"),
    })?;
    Ok(())
}

/// Offsets of what was published to a topic mean nothing. Queues are asked for first: publishing to them must not
/// depend on whether topics can be looked up.
async fn is_topic(client: &Client, destination: &str) -> anyhow::Result<bool> {
    let not_a_queue = match client.get_queue(destination).await {
        Ok(_) => return Ok(false),
        Err(error) if error.reason() == Reason::QueueNotFound => error,
        Err(error) => return Err(error.into()),
    };
    match client.get_topic(destination).await {
        Ok(_) => Ok(true),
        Err(error) if error.reason() == Reason::TopicNotFound => Err(not_a_queue.into()),
        Err(error) => Err(error.into()),
    }
}

struct Publisher<'a> {
    producer: &'a Producer,
    template: Message,
    rate: Option<u32>,
    started: time::Instant,
    progress: indicatif::ProgressBar,
    first: Option<Confirm>,
    /// The last one, where there is more than one.
    last: Option<Confirm>,
    sent_count: u64,
}

impl<'a> Publisher<'a> {
    fn new(producer: &'a Producer, args: &PublishArgs) -> Self {
        let template = template(args);
        let takes_long = args.file.is_some() || args.count.is_some();
        let progress = if takes_long { progress_bar(args.count) } else { indicatif::ProgressBar::hidden() };
        let started = time::Instant::now();
        Self {
            producer,
            template,
            rate: args.rate,
            started,
            progress,
            first: None,
            last: None,
            sent_count: 0,
        }
    }

    async fn repeat(&mut self, body: &str, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            self.send(body.to_owned().into_bytes()).await?;
        }
        Ok(())
    }

    async fn lines(&mut self, input: impl AsyncRead + Unpin, count: Option<u64>) -> anyhow::Result<()> {
        let mut lines = BufReader::new(input).split(b'\n');
        while count.is_none_or(|count| self.sent_count < count) {
            let Some(mut line) = lines.next_segment().await.context("cannot read the messages")? else {
                break;
            };
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            self.send(line).await?;
        }
        Ok(())
    }

    async fn send(&mut self, body: Vec<u8>) -> anyhow::Result<()> {
        self.keep_pace().await;
        let confirm = self.producer.send(Message { body: body.into(), ..self.template.clone() }).await?;
        match self.first {
            None => self.first = Some(confirm),
            Some(_) => self.last = Some(confirm),
        }
        self.sent_count += 1;
        self.progress.inc(1);
        Ok(())
    }

    async fn keep_pace(&self) {
        let Some(rate) = self.rate else { return };
        let due = self.started + Duration::from_secs(1).mul_f64(self.sent_count as f64 / f64::from(rate));
        if due > time::Instant::now() + PACE_INTERVAL {
            time::sleep_until(due).await;
        }
    }

    fn finish(self) -> (Option<Confirm>, Option<Confirm>, u64) {
        self.progress.finish_and_clear();
        (self.first, self.last, self.sent_count)
    }
}
