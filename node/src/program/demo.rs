//! `skein-node demo`: a cluster under load whose leader is killed again and again, and a verdict.

mod ledger;
mod screen;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Serialize;
use skein_client::{Client, Message, QueueSettings, ShardId};
use tokio::{sync::watch, task::JoinHandle};

use self::{
    ledger::{Ledger, Totals},
    screen::Screen,
};
use super::cluster::LocalCluster;
use crate::{clock::Clock, tasks};

const QUEUE: &str = "demo";
const GROUP: &str = "demo";

/// Bytes of a message's body: its number, and padding to what an event usually has.
const BODY_BYTES: usize = 100;

/// How long a killed node stays down: long enough for another leader to be seen at work without it.
const DOWN_FOR: Duration = Duration::from_secs(1);

/// How long what was confirmed may take to arrive once publishing has ended.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long the cluster may take to heal after a restart, before the next kill.
const HEAL_WAIT_MAX: Duration = Duration::from_secs(20);

/// How often the picture is drawn anew.
const FRAME: Duration = Duration::from_millis(200);

/// What `skein-node demo` takes.
#[derive(clap::Args)]
pub struct DemoOptions {
    /// How long to publish, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How often to kill the leader, such as 5s or 800ms.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    kill_every: Duration,
    /// Messages published in a second.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// Fail when the median of the longest pauses after each kill is longer, such as 700ms: timers would take a second.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pause_max: Option<Duration>,
    /// Show nothing on the way, and end with one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What a demonstration came to.
#[derive(Debug, Serialize)]
struct Verdict {
    confirmed: u64,
    consumed: u64,
    lost: u64,
    duplicated: u64,
    redelivered: u64,
    kills: u64,
    /// The longest pause between two confirms around each kill: the median and the worst, in milliseconds.
    gap_ms_p50: f64,
    gap_ms_max: f64,
}

/// Runs the demonstration.
///
/// # Errors
/// When the cluster does not start or heal, when something confirmed was lost, when fewer leaders were killed than
/// asked for, and when the pauses were longer than they may be.
pub fn demo(options: &DemoOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        tokio::select! {
            result = run(options) => result,
            _ = interrupt.recv() => bail!("interrupted"),
        }
    })
}

async fn run(options: &DemoOptions) -> anyhow::Result<()> {
    let mut screen = Screen::new(options.json);
    screen.say("Starting three nodes...");
    let mut cluster = LocalCluster::start(3, None)?;
    let client = cluster.wait_ready().await?;
    client.create_queue(QUEUE, QueueSettings::default()).await?;
    let shard = client.get_queue(QUEUE).await?.shard;

    let clock = Clock::real();
    let ledger = Arc::new(Ledger::new(clock.clone()));
    let (stop_publishing, publishing) = watch::channel(false);
    let consumer = tasks::spawn(consume(client.clone(), Arc::clone(&ledger)));
    let publisher = tasks::spawn(publish(client.clone(), Arc::clone(&ledger), options.rate, publishing));

    let mut scene = Scene {
        cluster: &mut cluster,
        client: &client,
        shard,
        ledger: &ledger,
        screen: &mut screen,
        clock: &clock,
    };
    let kills = scene.play(options).await?;
    stop_publishing.send_replace(true);
    publisher.await.context("the publisher panicked")??;
    scene.drain().await?;
    stop(consumer).await?;
    drop(client);
    cluster.stop()?;

    let asked_for = kills_asked_for(options);
    let verdict = verdict(&ledger, kills);
    screen.verdict(&verdict)?;
    if verdict.lost > 0 {
        bail!("{} confirmed messages were lost", verdict.lost);
    }
    if kills < asked_for {
        bail!("the leader was killed {kills} times, and {asked_for} times was asked for");
    }
    if let Some(pause_max) = options.pause_max
        && verdict.gap_ms_p50 > pause_max.as_secs_f64() * 1e3
    {
        bail!("half of the kills cost {} ms or more, and {pause_max:?} was allowed", verdict.gap_ms_p50);
    }
    Ok(())
}

/// As many kills as fit before the end, each with time to recover from it.
fn kills_asked_for(options: &DemoOptions) -> u64 {
    let seconds = Duration::from_secs(options.seconds);
    let fitting = seconds.saturating_sub(DOWN_FOR).as_millis() / options.kill_every.as_millis().max(1);
    u64::try_from(fitting).unwrap_or(u64::MAX)
}

/// The part in which leaders die.
struct Scene<'a> {
    cluster: &'a mut LocalCluster,
    client: &'a Client,
    shard: ShardId,
    ledger: &'a Arc<Ledger>,
    screen: &'a mut Screen,
    clock: &'a Clock,
}

impl Scene<'_> {
    async fn play(&mut self, options: &DemoOptions) -> anyhow::Result<u64> {
        let start = self.clock.monotonic();
        let asked_for = kills_asked_for(options);
        let mut kills = 0;
        while kills < asked_for {
            let next = start + options.kill_every * u32::try_from(kills + 1).unwrap_or(u32::MAX);
            self.watch_until(next).await?;
            let leader = self.leader().await?;
            self.ledger.mark_kill();
            self.cluster.kill(leader)?;
            self.screen.note(format!("killed node {leader}, the leader"));
            kills += 1;
            self.watch_until(self.clock.monotonic() + DOWN_FOR).await?;
            self.cluster.restart(leader)?;
            self.screen.note(format!("started node {leader} again"));
        }
        self.watch_until(start + Duration::from_secs(options.seconds)).await?;
        Ok(kills)
    }

    /// The node that leads the queue's shard, once every node is back: killing a second one of three would stop
    /// publishing for a reason that this is not about.
    async fn leader(&mut self) -> anyhow::Result<u64> {
        let deadline = self.clock.monotonic() + HEAL_WAIT_MAX;
        loop {
            if let Ok(topology) = self.client.topology().await
                && topology.nodes.iter().all(|node| node.reachable)
                && let Some(leader) = topology.leader_of(self.shard)
                && self.cluster.nodes().iter().all(|node| node.pid().is_some())
            {
                return Ok(leader.id.get());
            }
            if self.clock.monotonic() > deadline {
                bail!("the cluster did not heal within {HEAL_WAIT_MAX:?}");
            }
            tokio::time::sleep(FRAME).await;
            self.draw().await?;
        }
    }

    async fn watch_until(&mut self, until: Duration) -> anyhow::Result<()> {
        loop {
            let left = until.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(FRAME)).await;
            self.draw().await?;
        }
    }

    /// Waits until everything confirmed was consumed, or it is clear that it will not be.
    async fn drain(&mut self) -> anyhow::Result<()> {
        self.screen.note("publishing has ended; waiting for the rest to arrive".to_owned());
        let deadline = self.clock.monotonic() + DRAIN_WAIT_MAX;
        while self.ledger.totals().lost > 0 && self.clock.monotonic() < deadline {
            tokio::time::sleep(FRAME).await;
            self.draw().await?;
        }
        Ok(())
    }

    async fn draw(&mut self) -> anyhow::Result<()> {
        self.cluster.check_alive()?;
        if self.screen.is_shown() {
            let leader = self
                .client
                .topology()
                .await
                .ok()
                .and_then(|topology| topology.leader_of(self.shard).map(|node| node.id.get()));
            self.screen.draw(self.cluster.nodes(), leader, &self.ledger.totals(), self.clock.monotonic());
        }
        Ok(())
    }
}

/// Publishes numbered messages at a rate until told to stop; then waits for the last confirm.
async fn publish(
    client: Client,
    ledger: Arc<Ledger>,
    rate: u64,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let producer = client.producer(QUEUE).build().await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let per_tick = (rate / 200).max(1);
    let (confirms, mut waiting) = tokio::sync::mpsc::channel(100_000);
    let confirmed = Arc::clone(&ledger);
    let confirmer: JoinHandle<anyhow::Result<()>> = tasks::spawn(async move {
        while let Some((number, confirm)) = waiting.recv().await {
            let confirm: skein_client::Confirm = confirm;
            confirm.await?;
            confirmed.confirmed(number);
        }
        Ok(())
    });
    let mut number = 0;
    while !*stop.borrow_and_update() {
        ticks.tick().await;
        for _ in 0..per_tick {
            ledger.sent(number);
            let confirm = producer.send(Message::new(body(number))).await?;
            confirms.send((number, confirm)).await.context("the confirms ended early")?;
            number += 1;
        }
    }
    drop(confirms);
    confirmer.await.context("the confirmer panicked")??;
    producer.close().await?;
    Ok(())
}

async fn consume(client: Client, ledger: Arc<Ledger>) -> anyhow::Result<()> {
    let mut consumer = client.consumer(QUEUE, GROUP).build().await?;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let number = number(&delivery.message.body).context("a message that nobody sent was delivered")?;
        ledger.consumed(number, delivery.offset.get());
        // Not waited for: acks gather on their way, and one that is lost with a leader only means a redelivery.
        drop(delivery.ack());
    }
    Ok(())
}

/// Ends a task that runs for as long as there is something to do; what went wrong in it before counts.
async fn stop(task: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    if task.is_finished() {
        return task.await.context("the consumer panicked")?;
    }
    task.abort();
    Ok(())
}

fn body(number: u64) -> Bytes {
    let mut body = vec![b'.'; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    body.into()
}

fn number(body: &Bytes) -> Option<u64> {
    Some(u64::from_be_bytes(body.get(..8)?.try_into().ok()?))
}

fn verdict(ledger: &Ledger, kills: u64) -> Verdict {
    let Totals { confirmed, consumed, lost, duplicated, redelivered, .. } = ledger.totals();
    let mut gaps = ledger.gaps();
    gaps.sort_unstable();
    let in_ms = |gap: Option<&Duration>| gap.map_or(0.0, |gap| (gap.as_secs_f64() * 1e4).round() / 10.0);
    Verdict {
        confirmed,
        consumed,
        lost,
        duplicated,
        redelivered,
        kills,
        gap_ms_p50: in_ms(gaps.get(gaps.len() / 2)),
        gap_ms_max: in_ms(gaps.last()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration; write 5s or 800ms"))?;
    match unit {
        "s" if number > 0 => Ok(Duration::from_secs(number)),
        "ms" if number > 0 => Ok(Duration::from_millis(number)),
        _ => Err(format!("{text:?} is no duration; write 5s or 800ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_or_refused() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("800ms"), Ok(Duration::from_millis(800)));
        for wrong in ["", "5", "s", "0s", "5m", "-1s", "1.5s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
