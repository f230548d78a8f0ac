//! `skein group`: create, update, seek, show, delete.

use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use skein_client::{Client, Filter, Offset, Position};

use crate::{
    args,
    output::Output,
    queue::{group_table, group_value},
};

const CREATE_EXAMPLES: &str = "\
Examples:
  skein group create orders mail --start next
  skein group create orders audit --time 2026-11-26T12:00:00Z
  skein group create orders europe --filter 'header.region ^= eu and not header.test exists'";

const UPDATE_EXAMPLES: &str = "\
Examples:
  skein group update orders mail --filter 'key ~ orders.*.created and header.region = eu'
  skein group update orders mail --no-filter";

const SEEK_EXAMPLES: &str = "\
Examples:
  skein group seek orders mail --to next        skip everything there is
  skein group seek orders mail --time 10m       read the last ten minutes again
  skein group seek orders mail --offset 4711";

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a consumer group; one that exists is left as it is.
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        queue: String,
        group: String,
        /// Where it begins to read; first unless given.
        #[arg(long, value_enum, conflicts_with_all = ["offset", "time"])]
        start: Option<Start>,
        #[command(flatten)]
        place: PlaceArgs,
        /// Which messages it wants: `key` or `header.NAME` with = or ^= (begins with), key ~ PATTERN, header.NAME
        /// exists, joined by and, or, not and parentheses. The others count as acked.
        #[arg(long)]
        filter: Option<Filter>,
    },
    /// Set which messages a consumer group wants.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update {
        queue: String,
        group: String,
        /// Which messages it wants from now on.
        #[arg(long, required_unless_present = "no_filter")]
        filter: Option<Filter>,
        /// It wants all messages.
        #[arg(long, conflicts_with = "filter")]
        no_filter: bool,
    },
    /// Let a consumer group go on reading from somewhere else; what its consumers hold is taken from them.
    #[command(after_help = SEEK_EXAMPLES)]
    Seek {
        queue: String,
        group: String,
        /// Where it goes on.
        #[arg(
            long,
            value_enum,
            required_unless_present_any = ["offset", "time"],
            conflicts_with_all = ["offset", "time"]
        )]
        to: Option<Start>,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Show how far a consumer group is.
    Show { queue: String, group: String },
    /// Delete a consumer group.
    Delete { queue: String, group: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Start {
    /// At the oldest message that is kept.
    First,
    /// At the next message that is published.
    Next,
}

/// A place in a queue that is neither of its ends.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// At this message, or where it is gone, at the next one that is kept.
    #[arg(long)]
    offset: Option<u64>,
    /// At the first message published since then: a time such as 2026-11-26T12:00:00Z, or 10m for ten minutes ago.
    #[arg(long, value_name = "WHEN", value_parser = args::when, conflicts_with = "offset")]
    time: Option<SystemTime>,
}

impl PlaceArgs {
    /// The place that is named, or else the end.
    fn position_or(&self, end: Option<Start>) -> Position {
        match (self.offset, self.time, end) {
            (Some(offset), _, _) => Position::Offset(Offset::new(offset)),
            (None, Some(time), _) => Position::Time(time),
            (None, None, Some(Start::Next)) => Position::Next,
            (None, None, Some(Start::First) | None) => Position::First,
        }
    }
}

pub(crate) async fn run(client: &Client, command: GroupCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create { queue, group, start, place, filter } => {
            let position = place.position_or(start);
            let created = match filter {
                Some(filter) => client.create_filtered_group(&queue, &group, position, filter).await?,
                None => client.create_group(&queue, &group, position).await?,
            };
            let value = json!({ "queue": queue, "group": group, "created": created });
            output.result(&value, || match created {
                true => format!("created {group} of {queue}"),
                false => format!("{group} of {queue} exists already"),
            })?;
        }
        GroupCommand::Update { queue, group, filter, no_filter: _ } => {
            let updated = client.set_filter(&queue, &group, filter).await?;
            output.result(&group_value(&updated), || format!("updated {group} of {queue}"))?;
        }
        GroupCommand::Seek { queue, group, to, place } => {
            let offset = client.seek_group(&queue, &group, place.position_or(to)).await?;
            let value = json!({ "queue": queue, "group": group, "offset": offset.get() });
            output.result(&value, || format!("{group} of {queue} goes on at offset {offset}"))?;
        }
        GroupCommand::Show { queue, group } => {
            let group = client.get_group(&queue, &group).await?;
            output.result(&group_value(&group), || group_table(std::slice::from_ref(&group)))?;
        }
        GroupCommand::Delete { queue, group } => {
            client.delete_group(&queue, &group).await?;
            let value = json!({ "queue": queue, "group": group, "deleted": true });
            output.result(&value, || format!("deleted {group} of {queue}"))?;
        }
    }
    Ok(())
}
