//! `skein bench`: publishes and consumes for a while, and tells how fast it was and whether anything was lost.

mod body;
mod load;
mod processes;
mod replay;
mod report;
mod shape;
mod tally;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, builder::RangedU64ValueParser};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use skein_client::{Client, Position, QueueSettings, Retention};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};

use self::{
    body::BODY_BYTES_MIN,
    load::{Consumed, Counters, Published},
    processes::Processes,
    report::Report,
    shape::Shape,
    tally::Verdict,
};
use crate::{args::ConnectArgs, interrupt::interrupted, output::Output};

/// How long nothing new may arrive, after publishing ended, before what is missing counts as lost. Longer than the
/// default lease would be too patient for a measurement; a failover takes less.
const DRAIN_IDLE_MAX: Duration = Duration::from_secs(10);

/// Bindings that are made at the same time.
const BINDS_IN_FLIGHT_MAX: usize = 32;

/// How often the drain looks whether everything has arrived.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
Examples:
  skein bench --size 100 --producers 3 --consumers 3 --window 4096 --seconds 30
  skein bench --producers 1 --consumers 1 --window 1 --json       latency of one at a time
  skein bench --groups 4 --json                                   every message to four groups
  skein bench --priority --ttl 10m --json                         what some features cost
  skein bench --queues 4 --bindings 1000 --consumers 4 --json     through a topic
  skein bench --partitions 3 --json                               one queue that several nodes lead
  skein bench --consumers 0 --seconds 30 --replay --json          how fast a backlog is read
  skein bench --pids $(pgrep -d, skein-node) --json               with the brokers' CPU, memory and disk";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// Bytes of each body, at least 20.
    #[arg(long, default_value_t = 1024, value_parser = at_least(BODY_BYTES_MIN))]
    size: usize,
    /// Queues to spread the load over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    queues: u32,
    /// Producers, in turn one per queue.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    producers: u32,
    /// Consumers of each group, in turn one per queue. 0 measures publishing alone.
    #[arg(long, default_value_t = 3)]
    consumers: u32,
    /// Groups, each of which gets every message.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    groups: u32,
    #[command(flatten)]
    shape: Shape,
    /// Unconfirmed messages of each producer.
    #[arg(long, default_value_t = 512, value_parser = at_least(1))]
    window: usize,
    /// Unacked messages of each consumer.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    credit: u32,
    /// How long to publish.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Broker processes on this machine, to measure their CPU, memory and disk writes.
    #[arg(long, value_delimiter = ',', value_name = "PID,...")]
    pids: Vec<u32>,
    /// Keep everything that is acked, and read all of it again in the end, one consumer for each queue.
    #[arg(long)]
    replay: bool,
    /// Keep the queues.
    #[arg(long)]
    keep: bool,
}

fn at_least(least: usize) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least as u64..)
}

pub(crate) async fn run(
    client: &Client,
    connect: &ConnectArgs,
    args: BenchArgs,
    output: &Output,
) -> anyhow::Result<()> {
    ensure!(args.consumers == 0 || args.consumers >= args.queues, "give at least one consumer per queue");
    let run_id = rand::random::<u32>();
    let queues: Vec<_> = (0..args.queues).map(|queue| format!("bench-{run_id:08x}-{queue}")).collect();
    for queue in &queues {
        client.create_queue(queue, settings(&args)).await.context("cannot create the queues")?;
        for group in groups(&args) {
            create_group(client, queue, &group, &args.shape).await.context("cannot create the groups")?;
        }
    }
    let topic = bind_topic(client, &queues, &args.shape).await.context("cannot create the topic")?;
    let destinations = topic.as_ref().map_or(&queues[..], std::slice::from_ref);
    let measured = measure(connect, &args, &queues, destinations, output).await;
    if !args.keep {
        if let Some(topic) = &topic {
            client.delete_topic(topic).await.context("cannot delete the topic")?;
        }
        for queue in &queues {
            client.delete_queue(queue).await.context("cannot delete the queues")?;
        }
    }
    let report = measured?;
    output.line(&report.to_json().to_string())?;
    let lost_count = report.lost_count();
    ensure!(lost_count == 0, "{lost_count} confirmed messages were never received");
    Ok(())
}

/// What queues are to be like.
fn settings(args: &BenchArgs) -> QueueSettings {
    let retention = if args.replay { Retention::Limits } else { Retention::default() };
    QueueSettings { retention, ..args.shape.settings() }
}

/// Creates the topic to publish to, and binds the queues in turn; nothing where queues are published to.
async fn bind_topic(client: &Client, queues: &[String], shape: &Shape) -> anyhow::Result<Option<String>> {
    let bindings: Vec<_> = shape.bindings().zip(queues.iter().cycle()).collect();
    if bindings.is_empty() {
        return Ok(None);
    }
    let topic = format!("{}-topic", queues[0]);
    client.create_topic(&topic, None).await?;
    stream::iter(bindings)
        .map(Ok)
        .try_for_each_concurrent(BINDS_IN_FLIGHT_MAX, |(filter, queue)| {
            let bound = client.bind(&topic, queue, Some(filter));
            async { bound.await.map(drop) }
        })
        .await?;
    Ok(Some(topic))
}

/// The consumer groups of a measurement; none where nothing is consumed.
fn groups(args: &BenchArgs) -> impl Iterator<Item = String> + use<> {
    let count = if args.consumers > 0 { args.groups } else { 0 };
    (0..count).map(|group| format!("bench-{group}"))
}

async fn create_group(client: &Client, queue: &str, group: &str, shape: &Shape) -> anyhow::Result<()> {
    match shape.filter() {
        Some(filter) => client.create_filtered_group(queue, group, Position::First, filter).await?,
        None => client.create_group(queue, group, Position::First).await?,
    };
    Ok(())
}

/// The load while it runs.
struct Load {
    counters: Arc<Counters>,
    publishing: watch::Sender<bool>,
    consuming: watch::Sender<bool>,
    producers: JoinSet<anyhow::Result<Published>>,
    /// For each group its consumers.
    consumers: Vec<JoinSet<anyhow::Result<Consumed>>>,
}

async fn measure(
    connect: &ConnectArgs,
    args: &BenchArgs,
    queues: &[String],
    destinations: &[String],
    output: &Output,
) -> anyhow::Result<Report> {
    let mut processes = Processes::new(&args.pids)?;
    let mut load = Load::start(connect, args, queues, destinations).await?;
    let started = Instant::now();
    let before = processes.sample().context("cannot read the processes given by --pids")?;
    tell_each_second(&load.counters, &mut processes, started, args.seconds, output).await?;
    let measured_for = started.elapsed();
    let counts = load.counters.snapshot();
    let after = processes.sample()?;

    load.publishing.send_replace(false);
    let published = collect(&mut load.producers).await?;
    if args.consumers > 0 {
        tokio::select! {
            () = drain(&load.counters, &published, args.groups) => {}
            () = interrupted() => {}
        }
    }
    load.consuming.send_replace(false);
    let mut consumed = Vec::new();
    let mut verdict = (args.consumers > 0).then(Verdict::default);
    for group in &mut load.consumers {
        let by_group = collect(group).await?;
        verdict = verdict.map(|verdict| verdict.and(Verdict::of(&published, &by_group)));
        consumed.extend(by_group);
    }
    let replayed = match args.replay {
        true => Some(replay::replay(&connect.client().await?, queues, args.credit).await?),
        false => None,
    };
    Ok(Report {
        measured_for,
        counts,
        confirm: published.into_iter().map(|published| published.latency).collect(),
        end_to_end: consumed.into_iter().map(|consumed| consumed.latency).collect(),
        gap_max: load.counters.gap_max(),
        verdict,
        usage: (!args.pids.is_empty()).then(|| processes.usage(&before, &after)),
        body_bytes: args.size.max(BODY_BYTES_MIN),
        replayed,
    })
}

impl Load {
    async fn start(
        connect: &ConnectArgs,
        args: &BenchArgs,
        queues: &[String],
        destinations: &[String],
    ) -> anyhow::Result<Self> {
        let mut load = Self {
            counters: Arc::new(Counters::new()),
            publishing: watch::Sender::new(true),
            consuming: watch::Sender::new(true),
            producers: JoinSet::new(),
            consumers: Vec::new(),
        };
        let in_turn = |names: &[String], index: u32| names[index as usize % names.len()].clone();
        // Connections of their own, so that deliveries do not stand in the way of confirms.
        let for_consumers = connect.client().await?;
        for group in groups(args) {
            let mut consumers = JoinSet::new();
            for index in 0..args.consumers {
                let consumer =
                    for_consumers.consumer(in_turn(queues, index), &group).credit_messages(args.credit);
                let consumer = consumer.build().await?;
                let (counters, consuming) = (Arc::clone(&load.counters), load.consuming.subscribe());
                consumers.spawn(load::consume(consumer, args.producers, counters, consuming));
            }
            load.consumers.push(consumers);
        }
        let for_producers = connect.client().await?;
        let body_bytes = args.size.max(BODY_BYTES_MIN);
        for index in 0..args.producers {
            let producer = for_producers
                .producer(in_turn(destinations, index))
                .window_messages(args.window)
                .window_bytes(usize::MAX);
            let producer = producer.build().await?;
            let (counters, publishing) = (Arc::clone(&load.counters), load.publishing.subscribe());
            let (window, shape) = (args.window, args.shape);
            let orders = load::Orders { index, body_bytes, window, shape };
            load.producers.spawn(load::publish(producer, orders, counters, publishing));
        }
        Ok(load)
    }
}

async fn tell_each_second(
    counters: &Counters,
    processes: &mut Processes,
    started: Instant,
    seconds: u64,
    output: &Output,
) -> anyhow::Result<()> {
    let mut before = counters.snapshot();
    for second in 1..=seconds {
        tokio::select! {
            () = time::sleep_until(started + Duration::from_secs(second)) => {}
            _ = interrupted() => return Ok(()),
        }
        let now = counters.snapshot();
        processes.sample()?;
        output.progress_line(&format!(
            "{second:>3} s  sent {:>9}/s  confirmed {:>9}/s  received {:>9}/s  acked {:>9}/s",
            now.sent_count - before.sent_count,
            now.confirmed_count - before.confirmed_count,
            now.received_count - before.received_count,
            now.acked_count - before.acked_count,
        ))?;
        before = now;
    }
    Ok(())
}

/// Waits until everything confirmed was received and acked, or nothing new comes any more.
async fn drain(counters: &Counters, published: &[Published], groups: u32) {
    let wanted_count: u64 = published.iter().map(|published| published.confirmed.count()).sum();
    let confirmed_count = wanted_count * u64::from(groups);
    let mut seen = counters.snapshot();
    let mut last_progress = Instant::now();
    while seen.received_count.min(seen.acked_count) < confirmed_count
        && last_progress.elapsed() < DRAIN_IDLE_MAX
    {
        time::sleep(DRAIN_CHECK_INTERVAL).await;
        let now = counters.snapshot();
        if now != seen {
            seen = now;
            last_progress = Instant::now();
        }
    }
}

async fn collect<T: 'static>(tasks: &mut JoinSet<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result.context("a part of the load has failed")??);
    }
    Ok(results)
}
