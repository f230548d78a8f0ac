//! Publishers and consumers under seed, over the client library, that record every call.

mod member;
mod mover;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use skein_client::{Client, Confirm, ConfirmError, Message, Position, Producer, QueueSettings};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{self, Instant, MissedTickBehavior},
};

use self::{member::Member, mover::Mover};
use crate::{
    history::{Outcome, Reader},
    recorder::{Call, Recorder},
    rules::{Rule, Wishes},
    stamp::{self, Identity},
    wait,
};

/// The group that never acks, so that the queue keeps everything and can be compared between replicas.
pub const KEEPING_GROUP: &str = "keep";

/// Messages come in bursts, this often.
const BURST_EVERY: Duration = Duration::from_millis(20);

/// Messages that may wait where consumers hold few at a time: more would say how slow the machine is, and nothing else.
const BACKLOG_MAX: u64 = 200;

/// How often a publisher looks how many wait, and how long it waits for an answer.
const BACKLOG_LOOK_EVERY: Duration = Duration::from_millis(500);

/// The largest body of most messages.
const SMALL_BODY_BYTES_MAX: usize = 100;

/// Unconfirmed messages of one producer. Reached while there is no leader; publishing then waits.
const WINDOW_MESSAGES: usize = 2_000;

/// Calls whose end is awaited in order. More than a producer's window or a consumer's credit.
const CALLS_WAITING_MAX: usize = 4_096;

/// What a workload does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Queues, created if need be.
    pub queues: Vec<String>,
    /// What the queues promise beyond what every queue does.
    pub rule: Option<Rule>,
    /// Producers of each queue.
    pub producers: u64,
    /// Groups of each queue that read everything.
    pub groups: Vec<String>,
    /// Groups of each queue that read everything too, but not before [`Workload::start_late_groups`].
    pub late_groups: Vec<String>,
    /// Whether a group that never acks keeps every message. Queues without any group keep them as well.
    pub keeps: bool,
    /// Consumers of each group.
    pub consumers: u64,
    /// Messages per burst of one producer: 0 to twice as many.
    pub burst_messages: u64,
    /// A producer stops after so many messages.
    pub messages_max: u64,
    /// The largest body, in bytes; most are small.
    pub body_bytes_max: usize,
    /// Of 100 messages, so many may be as large as that.
    pub large_percent: u32,
    /// Of 100 messages delivered for the first time, so many are given back.
    pub nack_percent: u32,
    /// How long a publish may take before its outcome counts as unknown.
    pub delivery_timeout: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            queues: ["orders", "invoices"].map(str::to_owned).into(),
            rule: None,
            producers: 2,
            groups: ["mail", "stock"].map(str::to_owned).into(),
            late_groups: Vec::new(),
            keeps: true,
            consumers: 2,
            // About 1,000 messages a second in all: enough to be in the way of every fault, little enough to judge.
            burst_messages: 5,
            messages_max: u64::MAX,
            body_bytes_max: 20_000,
            large_percent: 5,
            nack_percent: 3,
            delivery_timeout: Duration::from_secs(60),
        }
    }
}

/// A workload under way. Dropping it ends it at once.
#[derive(Debug)]
pub struct Workload {
    client: Client,
    recorder: Recorder,
    readers: Vec<Reader>,
    late: Vec<Crew>,
    members_count: u64,
    stop_publishing: watch::Sender<bool>,
    stop_consuming: watch::Sender<bool>,
    publishers: JoinSet<Result<()>>,
    consumers: JoinSet<Result<()>>,
}

/// The consumers of one group.
#[derive(Debug)]
struct Crew {
    reader: Reader,
    plan: Plan,
    seed: u64,
}

impl Workload {
    /// Creates the queues and groups, and starts everything.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn start(client: Client, recorder: &Recorder, plan: &Plan, seed: u64) -> Result<Self> {
        let mut workload = Self {
            client,
            recorder: recorder.clone(),
            readers: Vec::new(),
            late: Vec::new(),
            members_count: 0,
            stop_publishing: watch::Sender::new(false),
            stop_consuming: watch::Sender::new(false),
            publishers: JoinSet::new(),
            consumers: JoinSet::new(),
        };
        workload.add(plan, seed).await?;
        Ok(workload)
    }

    /// Starts what another plan says, for other queues.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn add(&mut self, plan: &Plan, seed: u64) -> Result<()> {
        let mut seeds = SmallRng::seed_from_u64(seed);
        let crews = self.prepare(plan, &mut seeds).await?;
        for crew in crews {
            self.start_crew(crew).await?;
        }
        for queue in &plan.queues {
            let shared = plan.rule.filter(|rule| rule.shares_messages()).map(|_| seeds.next_u64());
            let first = self.members_count + 1;
            for _ in 0..plan.producers {
                let random = SmallRng::seed_from_u64(shared.unwrap_or_else(|| seeds.next_u64()));
                let own = self.next_number();
                let number = if shared.is_some() { first } else { own };
                self.start_publisher((queue.clone(), number), plan, random).await?;
            }
        }
        Ok(())
    }

    /// Starts the consumers of the late groups.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn start_late_groups(&mut self) -> Result<()> {
        for crew in std::mem::take(&mut self.late) {
            self.start_crew(crew).await?;
        }
        Ok(())
    }

    /// Ends publishing once every message handed to a producer is confirmed, refused or given up.
    ///
    /// # Errors
    /// When a publisher failed, or this takes longer than `limit`.
    pub async fn stop_publishing(&mut self, limit: Duration) -> Result<()> {
        self.stop_publishing.send_replace(true);
        time::timeout(limit, join_all(&mut self.publishers)).await.context("publishers did not end")?
    }

    /// Waits until every group that was started has acked everything.
    ///
    /// # Errors
    /// When messages are left after `limit`.
    pub async fn drain(&mut self, limit: Duration) -> Result<()> {
        let is_late = |reader: &Reader| self.late.iter().any(|crew| crew.reader == *reader);
        for reader in self.readers.iter().filter(|reader| !is_late(reader)) {
            wait::until(&format!("{reader} drained"), limit, async || {
                let group = self.client.get_group(&reader.queue, &reader.group).await?;
                ensure!(group.unacked_count == 0, "{} messages are left", group.unacked_count);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Ends consuming once every ack is answered or given up.
    ///
    /// # Errors
    /// When a consumer failed, or this takes longer than `limit`.
    pub async fn stop_consuming(&mut self, limit: Duration) -> Result<()> {
        self.stop_consuming.send_replace(true);
        time::timeout(limit, join_all(&mut self.consumers)).await.context("consumers did not end")?
    }

    /// Creates the queues and groups, and gives the crews of those that do not start late.
    async fn prepare(&mut self, plan: &Plan, seeds: &mut SmallRng) -> Result<Vec<Crew>> {
        let mut crews = Vec::new();
        for queue in &plan.queues {
            self.create_queue(queue, plan.rule).await?;
            let mut groups: Vec<_> = plan.groups.iter().chain(&plan.late_groups).collect();
            let is_kept = plan.keeps || groups.is_empty();
            if is_kept && !groups.is_empty() {
                self.client.create_group(queue, KEEPING_GROUP, Position::First).await?;
            }
            for (number, group) in groups.drain(..).enumerate() {
                self.client.create_group(queue, group, Position::First).await?;
                let reader = Reader { queue: queue.clone(), group: group.clone() };
                self.readers.push(reader.clone());
                let crew = Crew { reader, plan: plan.clone(), seed: seeds.next_u64() };
                if number < plan.groups.len() { crews.push(crew) } else { self.late.push(crew) }
            }
            let lease = self.client.get_queue(queue).await?.settings.lease;
            self.recorder.with(|history| {
                if is_kept {
                    history.kept.insert(queue.clone());
                }
                history.lease = lease.unwrap_or(Duration::MAX);
            });
        }
        self.recorder.with(|history| history.readers.extend(self.readers.iter().cloned()));
        Ok(crews)
    }

    /// Creates a queue, and before it the one to which it gives messages up.
    async fn create_queue(&self, queue: &str, rule: Option<Rule>) -> Result<()> {
        if let Some(graveyard) = rule.and_then(Rule::dead_letter_queue) {
            self.client.create_queue(graveyard, QueueSettings::default()).await?;
            self.recorder.with(|history| {
                // Without groups it keeps everything.
                history.kept.insert(graveyard.to_owned());
                history.dead_letter_queues.insert(queue.to_owned(), graveyard.to_owned());
            });
        }
        self.client.create_queue(queue, rule.map_or_else(QueueSettings::default, Rule::settings)).await?;
        self.recorder.with(|history| history.rules.extend(rule.map(|rule| (queue.to_owned(), rule))));
        Ok(())
    }

    async fn start_crew(&mut self, Crew { reader, plan, seed }: Crew) -> Result<()> {
        let mut seeds = SmallRng::seed_from_u64(seed);
        if plan.rule == Some(Rule::Moved) {
            let (client, recorder) = (self.client.clone(), self.recorder.clone());
            let random = SmallRng::seed_from_u64(seeds.next_u64());
            let mover = Mover { client, reader: reader.clone(), random, recorder };
            // No longer than there is something to publish: what it moves is to drain in the end.
            self.publishers.spawn(mover.run(self.stop_publishing.subscribe()));
        }
        for _ in 0..plan.consumers {
            let random = SmallRng::seed_from_u64(seeds.next_u64());
            self.start_consumer(reader.clone(), &plan, random).await?;
        }
        Ok(())
    }

    async fn start_publisher(
        &mut self,
        (queue, number): (String, u64),
        plan: &Plan,
        random: SmallRng,
    ) -> Result<()> {
        let builder = self.client.producer(&queue).window_messages(WINDOW_MESSAGES);
        let producer = builder.delivery_timeout(plan.delivery_timeout).build().await?;
        let publisher = Publisher {
            client: self.client.clone(),
            producer,
            has_room: true,
            look_at: Instant::now(),
            queue,
            number,
            sequence: 0,
            random,
            plan: plan.clone(),
            recorder: self.recorder.clone(),
        };
        self.publishers.spawn(publisher.run(self.stop_publishing.subscribe()));
        Ok(())
    }

    async fn start_consumer(&mut self, reader: Reader, plan: &Plan, random: SmallRng) -> Result<()> {
        let member = Member {
            client: self.client.clone(),
            reader,
            number: self.next_number(),
            random,
            nack_percent: plan.nack_percent,
            rule: plan.rule,
            is_over: self.stop_publishing.subscribe(),
            recorder: self.recorder.clone(),
        };
        let consumer = member.open().await?;
        self.consumers.spawn(member.run(consumer, self.stop_consuming.subscribe()));
        Ok(())
    }

    fn next_number(&mut self) -> u64 {
        self.members_count += 1;
        self.members_count
    }
}

/// Waits until all of them have ended; the first error, or panic, is the outcome.
pub(crate) async fn join_all(tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task panicked")??;
    }
    Ok(())
}

/// One producer of one queue.
struct Publisher {
    client: Client,
    producer: Producer,
    /// Not too many wait to be consumed, as far as it has looked.
    has_room: bool,
    look_at: Instant,
    queue: String,
    number: u64,
    sequence: u64,
    random: SmallRng,
    plan: Plan,
    recorder: Recorder,
}

impl Publisher {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let (waiting, confirms) = mpsc::channel(CALLS_WAITING_MAX);
        let confirms = tokio::spawn(record_confirms(self.recorder.clone(), confirms));
        let mut bursts = time::interval(BURST_EVERY);
        bursts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            tokio::select! {
                changed = stop.changed() => changed.context("the workload is gone")?,
                _ = bursts.tick() => if self.has_room().await {
                    self.burst(&waiting).await?;
                },
            }
        }
        drop(waiting);
        // What is not confirmed is recorded as such; the first failure is nothing more to know.
        let _ = self.producer.close().await;
        confirms.await.context("the task that waits for confirms panicked")
    }

    /// Whether its queue's groups keep up. What cannot be found out stays as it was.
    async fn has_room(&mut self) -> bool {
        let is_bounded = self.plan.rule.and_then(Rule::credit_messages).is_some();
        if is_bounded && Instant::now() >= self.look_at {
            let groups = self.plan.groups.iter().map(|group| self.client.get_group(&self.queue, group));
            let looked = time::timeout(BACKLOG_LOOK_EVERY, future::try_join_all(groups)).await;
            if let Ok(Ok(groups)) = looked {
                self.has_room = groups.iter().all(|group| group.unacked_count <= BACKLOG_MAX);
            }
            self.look_at = Instant::now() + BACKLOG_LOOK_EVERY;
        }
        self.has_room
    }

    async fn burst(&mut self, waiting: &mpsc::Sender<(Call, Confirm)>) -> Result<()> {
        let left = self.plan.messages_max - self.sequence;
        for _ in 0..self.random.random_range(0..=2 * self.plan.burst_messages).min(left) {
            self.sequence += 1;
            let identity = Identity {
                queue: self.queue.clone(),
                producer: self.number,
                sequence: self.sequence,
                uuid: self.random.next_u64(),
            };
            let is_large = self.random.random_range(0..100) < self.plan.large_percent;
            let body_bytes_max = if is_large { self.plan.body_bytes_max } else { SMALL_BODY_BYTES_MAX };
            let body_bytes = self.random.random_range(0..=body_bytes_max);
            let mut message = Message::new(stamp::seal(&identity, body_bytes));
            let mut wishes = Wishes::default();
            if let Some(rule) = self.plan.rule {
                wishes = rule.wishes(&identity, &mut self.random);
                message = rule.dress(message, &identity, &wishes);
            }
            let call = self.recorder.publish_invoked(identity, wishes);
            match self.producer.send(message).await {
                Ok(confirm) => waiting.send((call, confirm)).await.context("nobody waits for confirms")?,
                Err(error) => self.recorder.publish_returned(call, Outcome::Failed(error.to_string())),
            }
        }
        Ok(())
    }
}

async fn record_confirms(recorder: Recorder, mut confirms: mpsc::Receiver<(Call, Confirm)>) {
    while let Some((call, confirm)) = confirms.recv().await {
        let outcome = match confirm.await {
            Ok(offset) => Outcome::Ok(offset.get()),
            Err(ConfirmError::NotAccepted(cause)) => Outcome::Failed(cause.to_string()),
            Err(ConfirmError::OutcomeUnknown(cause)) => Outcome::Unknown(cause.to_string()),
        };
        recorder.publish_returned(call, outcome);
    }
}
