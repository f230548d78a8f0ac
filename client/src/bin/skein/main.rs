//! The command line of Skein: arguments in, exit code out.

mod args;
mod bench;
mod browse;
mod cluster;
mod consume;
mod group;
mod hints;
mod interrupt;
mod output;
mod publish;
mod queue;
mod top;
mod topic;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{args::ConnectArgs, output::Output};

/// Publish to, consume from and look after a Skein cluster.
#[derive(Debug, Parser)]
#[command(name = "skein", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Write JSON, one value per line.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  skein queue create orders
  skein publish orders 'two geese'
  skein consume orders --group mail
  skein --servers 10.0.0.1:7101,10.0.0.2:7101 cluster status";

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, change, list, look at, delete or purge queues, and move dead letters back.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Create, look at, move or delete consumer groups.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Create, bind, look at or delete topics, which pass messages on to queues.
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Publish messages to a queue or a topic.
    Publish(publish::PublishArgs),
    /// Take messages from a queue and ack them.
    Consume(consume::ConsumeArgs),
    /// Read messages without taking them.
    Browse(browse::BrowseArgs),
    /// Look at the cluster, let nodes join, leave and replace each other, and say who leads.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Watch which queues are busy, and who keeps up with them.
    Top(top::TopArgs),
    /// Measure a cluster: publish and consume for a while, and tell how fast it was and whether anything was lost.
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    let ran = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli, &output)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&hints::explain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli, output: &Output) -> anyhow::Result<()> {
    let client = cli.connect.client().await?;
    match cli.command {
        Command::Queue(command) => queue::run(&client, command, output).await,
        Command::Group(command) => group::run(&client, command, output).await,
        Command::Topic(command) => topic::run(&client, command, output).await,
        Command::Publish(args) => publish::run(&client, args, output).await,
        Command::Consume(args) => consume::run(&client, args, output).await,
        Command::Browse(args) => browse::run(&client, args, output).await,
        Command::Cluster(command) => cluster::run(&client, command, output).await,
        Command::Top(args) => top::run(&client, args, output).await,
        Command::Bench(args) => bench::run(&client, &cli.connect, args, output).await,
    }
}

/// The reader of our output has seen enough; that is no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
