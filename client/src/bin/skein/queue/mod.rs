//! `skein queue`: create, update, list, show, delete, purge, redrive.

mod redrive;
mod settings;
mod view;

use anyhow::ensure;
use clap::Subcommand;
use serde_json::json;
use skein_client::{Client, Setting};
use skein_proto::partitions;

pub(crate) use self::view::{group_table, group_value};
use self::{redrive::RedriveArgs, settings::SettingsArgs};
use crate::output::Output;

const CREATE_EXAMPLES: &str = "\
Examples:
  skein queue create orders --max-deliveries 5 --dead-letter-queue orders.dead
  skein queue create log --retention limits --max-age 7d --max-bytes 10GB";

const UPDATE_EXAMPLES: &str = "\
Examples:
  skein queue update orders --max-deliveries 10 --redelivery-delay 1s
  skein queue update orders --clear message-ttl --clear dead-letter-queue";

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Create a queue; one that exists with the same settings is left as it is.
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        /// Letters, digits and . _ - : / , beginning with a letter or digit.
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
        /// Put it into the shard of this queue, so that one call can publish to both, all or nothing.
        #[arg(long, value_name = "QUEUE")]
        colocated_with: Option<String>,
    },
    /// Change settings of a queue; what is not named stays as it is.
    #[command(after_help = UPDATE_EXAMPLES)]
    Update {
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
        /// Put this setting back to its default, such as max-age; may be repeated.
        #[arg(long, value_name = "SETTING", value_parser = settings::setting)]
        clear: Vec<Setting>,
    },
    /// List queues.
    List {
        /// Only queues whose names start with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a queue, its settings, and how far its consumer groups are.
    Show { name: String },
    /// Delete a queue with its groups and messages.
    Delete { name: String },
    /// Delete all messages of a queue.
    Purge { name: String },
    /// Move dead letters back to where they came from.
    Redrive(RedriveArgs),
}

pub(crate) async fn run(client: &Client, command: QueueCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        QueueCommand::Create { name, settings, colocated_with } => {
            let settings = settings.into_settings();
            let created = match colocated_with {
                Some(other) => client.create_colocated_queue(&name, settings, &other).await?,
                None => client.create_queue(&name, settings).await?,
            };
            output.result(&json!({ "queue": name, "created": created }), || match created {
                true => format!("created {name}"),
                false => format!("{name} exists already, with the same settings"),
            })?;
        }
        QueueCommand::Update { name, settings, clear } => {
            let names_one = settings != SettingsArgs::default() || !clear.is_empty();
            ensure!(names_one, "name a setting to change; `skein queue update --help` lists them");
            let queue = client.update_queue(&name, settings.into_update(&clear)).await?;
            output.result(&view::queue_value(&queue), || format!("updated {name}"))?;
        }
        QueueCommand::List { prefix } => {
            let queues = client.list_queues_with_prefix(&prefix).await?;
            if output.is_json() {
                queues.iter().try_for_each(|queue| output.line(&view::queue_value(queue).to_string()))?;
            } else {
                output.line(&view::queue_table(&queues))?;
            }
        }
        QueueCommand::Show { name } => {
            let queue = client.get_queue(&name).await?;
            let mut partitions = Vec::new();
            for partition in
                0..queue.settings.partitions.filter(|_| queue.is_partitioned()).unwrap_or_default()
            {
                partitions.push(client.get_queue(&partitions::name(&name, partition)).await?);
            }
            let mut value = view::queue_value(&queue);
            if queue.is_partitioned() {
                value["each_partition"] = partitions.iter().map(view::queue_value).collect();
            }
            output.result(&value, || view::queue_text(&queue, &partitions))?;
        }
        QueueCommand::Delete { name } => {
            client.delete_queue(&name).await?;
            output.result(&json!({ "queue": name, "deleted": true }), || format!("deleted {name}"))?;
        }
        QueueCommand::Purge { name } => {
            let purged = client.purge_queue(&name).await?;
            let value = json!({ "queue": name, "purged": purged });
            output.result(&value, || format!("deleted {purged} messages of {name}"))?;
        }
        QueueCommand::Redrive(args) => redrive::run(client, args, output).await?,
    }
    Ok(())
}
