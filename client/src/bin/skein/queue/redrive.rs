//! `skein queue redrive`: moves dead letters back to where they came from.

use clap::{Args, ValueEnum};
use serde_json::json;
use skein_client::{Client, DeadLetterReason, Error, REDRIVE_GROUP, Reason, RedriveOptions};

use crate::{
    args,
    output::{Output, progress_bar},
};

const EXAMPLES: &str = "\
Examples:
  skein queue redrive orders.dead                          everything, to where it came from
  skein queue redrive orders.dead --count 1                one message, to see what happens
  skein queue redrive orders.dead --reason expired --to orders.late
  skein queue redrive dead --header skein-dead-letter-queue=orders

A moved message stays in the dead-letter queue until its other groups have acked it.
The group skein-redrive stays, and from then on keeps dead letters until they are moved.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RedriveArgs {
    /// The dead-letter queue.
    #[arg(value_name = "DEAD_LETTER_QUEUE")]
    queue: String,
    /// Move messages here instead of where they came from.
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
    /// Move only messages with this header; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = args::header)]
    headers: Vec<(String, String)>,
    /// Move only messages that were given up for this reason.
    #[arg(long, value_enum)]
    reason: Option<ReasonArg>,
    /// Move this many messages at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReasonArg {
    /// They came back too often.
    MaxDeliveries,
    /// Nobody took them in time.
    Expired,
    /// Their queue was full.
    Overflow,
    /// A consumer rejected them.
    Rejected,
}

pub(crate) async fn run(client: &Client, args: RedriveArgs, output: &Output) -> anyhow::Result<()> {
    let waiting_count = waiting_count(client, &args.queue).await?;
    let progress = progress_bar(Some(args.count.unwrap_or(u64::MAX).min(waiting_count)));
    let mut options = RedriveOptions::new();
    if let Some(to) = args.to {
        options = options.to(to);
    }
    if let Some(reason) = args.reason {
        options = options.reason(reason.into());
    }
    if let Some(count) = args.count {
        options = options.messages_max(count);
    }
    options = args.headers.into_iter().fold(options, |options, (name, value)| options.header(name, value));
    let moved = client
        .redrive(&args.queue, options, |so_far| progress.set_position(so_far.moved_count + so_far.left_count))
        .await;
    progress.finish_and_clear();
    let moved = moved?;
    let value = json!({
        "queue": args.queue,
        "moved_count": moved.moved_count,
        "left_count": moved.left_count,
        "stopped_early": moved.stopped_early,
    });
    output.result(&value, || {
        let counts = format!("moved {}, left {}", moved.moved_count, moved.left_count);
        match moved.stopped_early {
            true => {
                format!("{counts}; those are as many as can be held, and there may be others behind them")
            }
            false => counts,
        }
    })?;
    Ok(())
}

/// How many messages there may be to move.
async fn waiting_count(client: &Client, queue: &str) -> Result<u64, Error> {
    match client.get_group(queue, REDRIVE_GROUP).await {
        Ok(group) => Ok(group.unacked_count),
        Err(error) if error.reason() == Reason::GroupNotFound => {
            Ok(client.get_queue(queue).await?.message_count)
        }
        Err(error) => Err(error),
    }
}

impl From<ReasonArg> for DeadLetterReason {
    fn from(arg: ReasonArg) -> Self {
        match arg {
            ReasonArg::MaxDeliveries => Self::MaxDeliveries,
            ReasonArg::Expired => Self::Expired,
            ReasonArg::Overflow => Self::Overflow,
            ReasonArg::Rejected => Self::Rejected,
        }
    }
}
