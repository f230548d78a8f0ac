//! `skein browse`: reads messages without taking them.

use std::time::SystemTime;

use clap::Args;
use futures::TryStreamExt;
use skein_client::{BrowseOptions, Client, Offset, Position};

use crate::{
    args,
    interrupt::interrupted,
    output::{Output, Seen},
};

const EXAMPLES: &str = "\
Examples:
  skein browse orders --from 100 --count 10 --json
  skein browse orders --from-time 10m --follow    the last ten minutes, and what comes";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BrowseArgs {
    queue: String,
    /// The offset to start at; the oldest message unless given.
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Start at the first message published since then: a time such as 2026-11-26T12:00:00Z, or 10m for ten minutes
    /// ago.
    #[arg(long, value_name = "WHEN", value_parser = args::when, conflicts_with = "from")]
    from_time: Option<SystemTime>,
    /// Read this many messages at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Wait for more at the end of the queue.
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run(client: &Client, args: BrowseArgs, output: &Output) -> anyhow::Result<()> {
    let mut messages = client.browse_with(&args.queue, options(&args)).await?;
    loop {
        let next = tokio::select! {
            next = messages.try_next() => next?,
            _ = interrupted() => None,
        };
        let Some(browsed) = next else { return Ok(()) };
        let seen = Seen { offset: browsed.offset, published_at: browsed.published_at, attempt: None };
        output.message(&browsed.message, &seen)?;
    }
}

fn options(args: &BrowseArgs) -> BrowseOptions {
    let from = match (args.from, args.from_time) {
        (Some(offset), _) => Position::Offset(Offset::new(offset)),
        (None, Some(time)) => Position::Time(time),
        (None, None) => Position::First,
    };
    let mut options = BrowseOptions::new().from(from);
    if let Some(count) = args.count {
        options = options.messages_max(count);
    }
    if args.follow { options.follow() } else { options }
}
