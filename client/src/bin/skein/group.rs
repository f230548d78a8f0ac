//! `skein group`: create, show, delete.

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use skein_client::{Client, Position};

use crate::{
    output::Output,
    queue::{group_table, group_value},
};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a consumer group; one that exists is left as it is.
    #[command(after_help = "Example:\n  skein group create orders mail --start next")]
    Create {
        queue: String,
        group: String,
        /// Where it begins to read.
        #[arg(long, value_enum, default_value_t = Start::First)]
        start: Start,
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

pub(crate) async fn run(client: &Client, command: GroupCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create { queue, group, start } => {
            let start = match start {
                Start::First => Position::First,
                Start::Next => Position::Next,
            };
            let created = client.create_group(&queue, &group, start).await?;
            let value = json!({ "queue": queue, "group": group, "created": created });
            output.result(&value, || match created {
                true => format!("created {group} of {queue}"),
                false => format!("{group} of {queue} exists already"),
            })?;
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
