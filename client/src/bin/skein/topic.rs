//! `skein topic`: create, bind, look at and delete topics.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use skein_client::{Client, Filter, Topic};

use crate::output::{Output, table};

const BIND_EXAMPLES: &str = "\
Examples:
  skein topic bind events audit                                     every message
  skein topic bind events mail --filter 'key ~ orders.*.created'
  skein topic bind events europe --filter 'header.region ^= eu'";

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic; one that exists is left as it is.
    Create {
        topic: String,
        /// The queue that gets messages that no binding wants; without one they are dropped.
        #[arg(long, value_name = "QUEUE")]
        alternate: Option<String>,
    },
    /// Set the queue that gets messages that no binding wants.
    Update {
        topic: String,
        /// That queue.
        #[arg(long, value_name = "QUEUE", required_unless_present = "no_alternate")]
        alternate: Option<String>,
        /// Such messages are dropped.
        #[arg(long, conflicts_with = "alternate")]
        no_alternate: bool,
    },
    /// List topics.
    List,
    /// Look at a topic and its bindings.
    Show { topic: String },
    /// Let a queue get messages of a topic.
    #[command(after_help = BIND_EXAMPLES)]
    Bind(BindArgs),
    /// Take a binding away, named by its queue and filter.
    Unbind(BindArgs),
    /// Delete a topic; its queues stay.
    Delete { topic: String },
}

#[derive(Debug, Args)]
pub(crate) struct BindArgs {
    topic: String,
    queue: String,
    /// Which messages: `key` or `header.NAME` with = or ^= (begins with), key ~ PATTERN, header.NAME exists, joined by
    /// and, or, not and parentheses. All of them unless given.
    #[arg(long)]
    filter: Option<Filter>,
}

pub(crate) async fn run(client: &Client, command: TopicCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        TopicCommand::Create { topic, alternate } => {
            let created = client.create_topic(&topic, alternate.as_deref()).await?;
            output.result(&json!({ "topic": topic, "created": created }), || match created {
                true => format!("created {topic}"),
                false => format!("{topic} exists already"),
            })?;
        }
        TopicCommand::Update { topic, alternate, no_alternate: _ } => {
            let updated = client.update_topic(&topic, alternate.as_deref()).await?;
            output.result(&topic_value(&updated), || format!("updated {topic}"))?;
        }
        TopicCommand::List => list(&client.list_topics().await?, output)?,
        TopicCommand::Show { topic } => {
            let topic = client.get_topic(&topic).await?;
            output.result(&topic_value(&topic), || topic_text(&topic))?;
        }
        TopicCommand::Bind(BindArgs { topic, queue, filter }) => {
            let changed = client.bind(&topic, &queue, filter).await?;
            let value = json!({ "topic": topic, "queue": queue, "changed": changed });
            output.result(&value, || match changed {
                true => format!("bound {queue} to {topic}"),
                false => format!("{queue} is bound to {topic} so already"),
            })?;
        }
        TopicCommand::Unbind(BindArgs { topic, queue, filter }) => {
            let changed = client.unbind(&topic, &queue, filter).await?;
            let value = json!({ "topic": topic, "queue": queue, "changed": changed });
            output.result(&value, || match changed {
                true => format!("unbound {queue} from {topic}"),
                false => format!("{queue} is not bound to {topic} so; see skein topic show {topic}"),
            })?;
        }
        TopicCommand::Delete { topic } => {
            client.delete_topic(&topic).await?;
            output.result(&json!({ "topic": topic, "deleted": true }), || format!("deleted {topic}"))?;
        }
    }
    Ok(())
}

fn list(topics: &[Topic], output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        for topic in topics {
            output.line(&topic_value(topic).to_string())?;
        }
        return Ok(());
    }
    let heading = ["TOPIC", "BINDINGS", "ALTERNATE"].map(str::to_owned).to_vec();
    let rows = topics.iter().map(|topic| {
        let alternate = topic.alternate_queue.clone().unwrap_or_else(|| "none".to_owned());
        vec![topic.name.clone(), topic.bindings.len().to_string(), alternate]
    });
    output.line(&table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()))?;
    Ok(())
}

fn topic_value(topic: &Topic) -> Value {
    let bindings = topic.bindings.iter().map(|binding| {
        json!({ "queue": binding.queue, "filter": binding.filter.as_ref().map(ToString::to_string) })
    });
    json!({
        "topic": topic.name,
        "alternate_queue": topic.alternate_queue,
        "bindings": bindings.collect::<Vec<_>>(),
    })
}

fn topic_text(topic: &Topic) -> String {
    let alternate = topic.alternate_queue.as_deref().unwrap_or("none");
    let mut rows = vec![["QUEUE", "GETS"].map(str::to_owned).to_vec()];
    rows.extend(topic.bindings.iter().map(|binding| {
        let filter = binding.filter.as_ref().map_or_else(|| "everything".to_owned(), ToString::to_string);
        vec![binding.queue.clone(), filter]
    }));
    format!("topic      {}\nalternate  {alternate}\n\n{}", topic.name, table(&rows))
}
