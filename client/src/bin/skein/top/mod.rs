//! `skein top`: which queues are busy now, and who keeps up with them.

mod rates;
mod view;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures::future;
use skein_client::{Client, Error, Queue};
use tokio::time::{self, Instant};

use self::rates::{Busy, Sample};
use crate::{args, output::Output};

/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// The shortest time from which a rate can be told.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skein top                        until Ctrl-C
  skein top --by backlog           those first where most waits
  skein --json top --count 1       once, for a program

Columns: messages published, and done (acked or given up), a second; messages that the group has
before it, those of them that consumers hold, consumers, and how old the oldest one is that waits.")]
pub(crate) struct TopArgs {
    /// How long to look each time.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = args::duration)]
    interval: Duration,
    /// Show no more queues than this.
    #[arg(long, value_name = "N", default_value_t = 20)]
    queues: usize,
    /// Which queues come first.
    #[arg(long, value_enum, default_value_t = By::Rate)]
    by: By,
    /// End after so many looks; otherwise with Ctrl-C.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Which queues come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// Where most is published and done.
    Rate,
    /// Where most waits.
    Backlog,
}

pub(crate) async fn run(client: &Client, args: TopArgs, output: &Output) -> anyhow::Result<()> {
    anyhow::ensure!(args.interval >= INTERVAL_MIN, "--interval is too short; {INTERVAL_MIN:?} is the least");
    let clears = !output.is_json() && args.count != Some(1) && io::stdout().is_terminal();
    let mut before = sample(client).await.context("looking at the queues")?;
    let mut looks = 0;
    while args.count.is_none_or(|count| looks < count) {
        time::sleep_until(before.at + args.interval).await;
        match look(client, &args, &before).await {
            Ok((after, value, text)) => {
                if clears {
                    write!(io::stdout().lock(), "{CLEAR}")?;
                }
                output.result(&value, || text)?;
                looks += 1;
                before = after;
            }
            // A cluster that nobody leads for a moment is what somebody may be looking for.
            Err(error) if error.is_retryable() && args.count.is_none() => {
                output.error(&format!("{error}; looking again"));
                before.at = Instant::now();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn look(
    client: &Client,
    args: &TopArgs,
    before: &Sample,
) -> Result<(Sample, serde_json::Value, String), Error> {
    let after = sample(client).await?;
    let mut busy = rates::between(before, &after);
    rates::sort(&mut busy, args.by);
    let shown = busy.len().min(args.queues);
    let left_out = busy.len() - shown;
    busy.truncate(shown);
    add_what_leaders_know(client, &mut busy).await;
    let topology = client.topology_of_leaders().await?;
    let (value, text) = (view::value(&topology, &busy), view::text(&topology, &busy, left_out));
    Ok((after, value, text))
}

async fn sample(client: &Client) -> Result<Sample, Error> {
    let queues = client.list_queues().await?;
    Ok(Sample::of(Instant::now(), queues))
}

/// Consumers and what they hold are known to the leaders alone. A queue that is gone meanwhile keeps what is known.
async fn add_what_leaders_know(client: &Client, busy: &mut [Busy]) {
    let asked = future::join_all(busy.iter().map(|busy| client.get_queue(&busy.name))).await;
    for (busy, answer) in busy.iter_mut().zip(asked) {
        if let Ok(Queue { groups, .. }) = answer {
            busy.take_in(&groups);
        }
    }
}
