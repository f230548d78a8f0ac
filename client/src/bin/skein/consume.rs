//! `skein consume`: takes messages, prints them, and acks them.

use std::time::Duration;

use clap::Args;
use skein_client::{Client, Consumer, Delivery, Reason, Settled};
use tokio::{signal, time};

use crate::output::{Output, Seen, progress_bar};

/// How long nothing comes before the group is asked whether anything is left.
const IDLE: Duration = Duration::from_millis(300);

/// Messages held unacked at most.
const CREDIT_MESSAGES: u64 = 1_000;

const EXAMPLES: &str = "\
Examples:
  skein consume orders                       everything there is, then end
  skein consume orders --group mail --follow wait for more, until Ctrl-C
  skein consume orders --count 1 --json      one message with all its properties";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConsumeArgs {
    queue: String,
    /// The consumer group to be a member of; created if it does not exist.
    #[arg(long, default_value = "default")]
    group: String,
    /// End after this many messages.
    #[arg(long)]
    count: Option<u64>,
    /// Consumers with a higher priority are served first; those with a lower one while the others can take no more.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Wait for more when the queue is drained.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run(client: &Client, args: ConsumeArgs, output: &Output) -> anyhow::Result<()> {
    let credit = args.count.unwrap_or(u64::MAX).clamp(1, CREDIT_MESSAGES);
    let credit = u32::try_from(credit).expect("it was clamped");
    let consumer = client.consumer(&args.queue, &args.group);
    let mut consumer = consumer.credit_messages(credit).priority(args.priority).build().await?;
    let progress = args.count.map_or_else(indicatif::ProgressBar::hidden, |count| progress_bar(Some(count)));
    let mut taken_count = 0;
    let mut last_ack = None;
    while args.count.is_none_or(|count| taken_count < count) {
        let Some(delivery) = next(client, &mut consumer, &args).await? else {
            break;
        };
        last_ack = Some(print(&delivery, output, &progress)?);
        taken_count += 1;
    }
    progress.finish_and_clear();
    if let Some(ack) = last_ack {
        ack.await?;
    }
    consumer.close().await;
    Ok(())
}

/// The next message; none when the queue is drained or the user has seen enough.
async fn next(
    client: &Client,
    consumer: &mut Consumer,
    args: &ConsumeArgs,
) -> anyhow::Result<Option<Delivery>> {
    loop {
        let waited = tokio::select! {
            waited = time::timeout(IDLE, consumer.next()) => waited,
            _ = signal::ctrl_c() => return Ok(None),
        };
        match waited {
            Ok(delivery) => return Ok(delivery.transpose()?),
            Err(_) if !args.follow && is_drained(client, args).await? => return Ok(None),
            Err(_) => {}
        }
    }
}

/// Nothing is left for us.
async fn is_drained(client: &Client, args: &ConsumeArgs) -> anyhow::Result<bool> {
    match client.get_group(&args.queue, &args.group).await {
        Ok(group) => Ok(group.is_drained()),
        // The subscription, which creates it, is still on its way.
        Err(error) if error.reason() == Reason::GroupNotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn print(delivery: &Delivery, output: &Output, progress: &indicatif::ProgressBar) -> anyhow::Result<Settled> {
    let seen = Seen {
        offset: delivery.offset,
        published_at: delivery.published_at,
        attempt: Some(delivery.attempt),
    };
    progress.suspend(|| output.message(&delivery.message, &seen))?;
    progress.inc(1);
    Ok(delivery.ack())
}
