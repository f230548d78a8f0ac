//! `skein consume`: takes messages, prints them, and acks them.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use skein_client::{Client, Consumer, Delivery, Reason, Received, Settlement};
use tokio::time;

use crate::{
    interrupt::interrupted,
    output::{Output, Seen, progress_bar},
};

/// How long nothing comes before the group is asked whether anything is left.
const IDLE: Duration = Duration::from_millis(300);

/// Messages held unacked at most.
const CREDIT_MESSAGES: u32 = 1_000;

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
    /// End after this many messages. No others are taken, not even to be given back.
    #[arg(long, conflicts_with = "priority")]
    count: Option<u64>,
    /// Consumers with a higher priority are served first; those with a lower one while the others can take no more.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Wait for more when the queue is drained.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run(client: &Client, args: ConsumeArgs, output: &Output) -> anyhow::Result<()> {
    match args.count {
        Some(count) => {
            let progress = progress_bar(Some(count));
            let taken = take_so_many(client, &args, count, output, &progress).await;
            progress.finish_and_clear();
            taken
        }
        None => take_all(client, &args, output).await,
    }
}

/// Takes messages until there are none, or the user has seen enough.
async fn take_all(client: &Client, args: &ConsumeArgs, output: &Output) -> anyhow::Result<()> {
    let consumer = client.consumer(&args.queue, &args.group);
    let mut consumer = consumer.credit_messages(CREDIT_MESSAGES).priority(args.priority).build().await?;
    let printed = print_all(client, &mut consumer, args, output).await;
    // Also when nobody reads what is printed: what was not looked at goes back as if it had never come.
    consumer.close().await;
    printed
}

async fn print_all(
    client: &Client,
    consumer: &mut Consumer,
    args: &ConsumeArgs,
    output: &Output,
) -> anyhow::Result<()> {
    let mut last_ack = None;
    while let Some(delivery) = next(client, consumer, args).await? {
        let Delivery { offset, published_at, attempt, .. } = delivery;
        output.message(&delivery.message, &Seen { offset, published_at, attempt: Some(attempt) })?;
        last_ack = Some(delivery.ack());
    }
    if let Some(ack) = last_ack {
        ack.await?;
    }
    Ok(())
}

/// Takes so many messages at most, in calls of their own: a stream would have others on their way when it ends, and
/// giving those back would count as an attempt.
async fn take_so_many(
    client: &Client,
    args: &ConsumeArgs,
    count: u64,
    output: &Output,
    progress: &indicatif::ProgressBar,
) -> anyhow::Result<()> {
    let ConsumeArgs { queue, group, follow, .. } = args;
    let mut left = count;
    while left > 0 {
        let messages_max = u32::try_from(left).unwrap_or(u32::MAX).min(CREDIT_MESSAGES);
        let received = tokio::select! {
            received = client.receive(queue, group, messages_max, IDLE) => received?,
            _ = interrupted() => return Ok(()),
        };
        if received.is_empty() {
            if !follow && is_drained(client, args).await? {
                return Ok(());
            }
            continue;
        }
        let mut settlement = Settlement::new();
        for Received { message, offset, attempt, published_at, lease_token } in received {
            let seen = Seen { offset, published_at, attempt: Some(attempt) };
            progress.suspend(|| output.message(&message, &seen))?;
            progress.inc(1);
            settlement = settlement.ack(lease_token);
            left -= 1;
        }
        if let Some(failure) = client.settle(queue, group, settlement).await?.first() {
            bail!("a message was not acked, and comes again: {}", failure.message);
        }
    }
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
            _ = interrupted() => return Ok(None),
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
