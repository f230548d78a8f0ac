//! `skein browse`: reads messages without taking them.

use clap::Args;
use futures::TryStreamExt;
use skein_client::{Client, Offset};

use crate::output::{Output, Seen};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skein browse orders --from 100 --count 10 --json")]
pub(crate) struct BrowseArgs {
    queue: String,
    /// The offset to start at.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Read this many messages at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(crate) async fn run(client: &Client, args: BrowseArgs, output: &Output) -> anyhow::Result<()> {
    let mut messages = client.browse(&args.queue, Offset::new(args.from), args.count).await?;
    while let Some(browsed) = messages.try_next().await? {
        let seen = Seen { offset: browsed.offset, published_at: browsed.published_at, attempt: None };
        output.message(&browsed.message, &seen)?;
    }
    Ok(())
}
