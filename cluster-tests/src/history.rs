//! What a run did and saw: every call as invoke and return on one monotonic clock, every delivery, every fault.
//! Checks read it; nothing here judges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::{
    rules::{Rule, Wishes},
    stamp::{Garbled, Identity},
};

/// Time since the run began, on the harness's monotonic clock.
pub type Moment = Duration;

/// How long the effects of a disturbance may show: reconnects, held back messages, leaders that move home.
pub const DISTURBANCE_LASTS: Duration = Duration::from_secs(5);

/// After a clock was set, the cluster's time may be wrong for this long: it is set right again within seconds, but
/// never goes back, so that it stands still until the time that it was set to has come.
pub const CLOCKS_WRONG_LAST: Duration = Duration::from_secs(30);

/// A whole run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order in which they were invoked.
    pub publishes: Vec<Publish>,
    /// In the order in which they were received.
    pub deliveries: Vec<Delivery>,
    /// In the order in which they were invoked.
    pub settlements: Vec<Settlement>,
    /// In the order in which they were invoked.
    pub seeks: Vec<Seek>,
    /// What was browsed, once all was calm.
    pub views: Vec<View>,
    /// What each node counted, once all was calm.
    pub counts: Vec<Counts>,
    /// Everything after which connections break and leaders change.
    pub disturbances: Vec<Disturbance>,
    /// When nodes' clocks were set wrong.
    pub clocks_set: Vec<Moment>,
    /// What queues promise beyond what every queue does.
    pub rules: BTreeMap<String, Rule>,
    /// Groups that read their queue from its first message to its last.
    pub readers: BTreeSet<Reader>,
    /// Queues that keep every message, since one of their groups never acks.
    pub kept: BTreeSet<String>,
    /// The dead-letter queue of each queue that has one.
    pub dead_letter_queues: BTreeMap<String, String>,
    /// How long a consumer may hold a message.
    pub lease: Duration,
    /// Faults that the run promised to inject.
    pub faults_required: BTreeSet<&'static str>,
    /// Faults that happened.
    pub faults_done: BTreeSet<&'static str>,
    /// Why the run could not be brought to its end, where it could not.
    pub unfinished: Vec<String>,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It took effect.
    Ok(T),
    /// It provably did not take effect, and never will.
    Failed(String),
    /// It may have taken effect, or may yet.
    Unknown(String),
}

/// One message handed to a producer.
#[derive(Debug, Clone)]
pub struct Publish {
    /// Which message.
    pub identity: Identity,
    /// How it is to be handled.
    pub wishes: Wishes,
    /// When the call began.
    pub invoked: Moment,
    /// When it ended, if it did.
    pub returned: Option<Moment>,
    /// The offset, where it was confirmed.
    pub outcome: Outcome<u64>,
}

/// A consumer group of a queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reader {
    /// The queue it reads.
    pub queue: String,
    /// Its name.
    pub group: String,
}

/// One message handed to a consumer.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The group it was delivered to.
    pub reader: Reader,
    /// The consumer, numbered by the harness.
    pub consumer: u64,
    /// Where it lies in the queue.
    pub offset: u64,
    /// 1 when delivered for the first time.
    pub attempt: u32,
    /// What its body says.
    pub identity: Result<Identity, Garbled>,
    /// When the consumer got it.
    pub received: Moment,
}

/// What a settlement asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettlementKind {
    /// Done with it.
    Ack,
    /// To be delivered again.
    Nack,
    /// Never to be delivered again, and given up.
    Reject,
}

/// One ack, nack or rejection of one message.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The group.
    pub reader: Reader,
    /// The consumer, numbered by the harness.
    pub consumer: u64,
    /// The message's offset.
    pub offset: u64,
    /// Which of them.
    pub kind: SettlementKind,
    /// When the call began.
    pub invoked: Moment,
    /// When it ended, if it did.
    pub returned: Option<Moment>,
    /// What came of it.
    pub outcome: Outcome<()>,
}

/// One move of a group to another place of its queue.
#[derive(Debug, Clone)]
pub struct Seek {
    /// The group.
    pub reader: Reader,
    /// The offset from which it is to go on.
    pub to: u64,
    /// When the call began.
    pub invoked: Moment,
    /// When it ended, if it did.
    pub returned: Option<Moment>,
    /// What came of it.
    pub outcome: Outcome<()>,
}

/// A queue as one leader showed it to a browser.
#[derive(Debug, Clone)]
pub struct View {
    /// The leader that served it.
    pub node_id: u64,
    /// The queue.
    pub queue: String,
    /// When the call began.
    pub invoked: Moment,
    /// Offsets and what lies there.
    pub contents: Vec<(u64, Result<Identity, Garbled>)>,
}

/// What one node, from what it has applied itself, says about a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// The node.
    pub node_id: u64,
    /// The queue.
    pub queue: String,
    /// The queue's and its groups' figures, by name.
    pub figures: BTreeMap<String, u64>,
}

/// Something after which connections break and leaders change.
#[derive(Debug, Clone)]
pub struct Disturbance {
    /// When it began.
    pub at: Moment,
    /// What it was.
    pub what: String,
}

/// One statement about which message lies at which offset.
#[derive(Debug, Clone, Copy)]
pub struct Sighting<'a> {
    /// The queue in which it was seen.
    pub queue: &'a str,
    /// Where in it.
    pub offset: u64,
    /// Which message.
    pub identity: &'a Identity,
    /// The statement itself.
    pub source: SightingSource<'a>,
}

/// Who says where a message lies.
#[derive(Debug, Clone, Copy)]
pub enum SightingSource<'a> {
    /// The confirm of its publish.
    Confirm(&'a Publish),
    /// A delivery.
    Delivery(&'a Delivery),
    /// A browse.
    View(&'a View),
}

impl History {
    /// Every statement about what lies where; bodies that cannot be read make none.
    pub fn sightings(&self) -> impl Iterator<Item = Sighting<'_>> {
        let confirms = self.publishes.iter().filter_map(|publish| match publish.outcome {
            // Nothing lies where a message would, that was there already.
            _ if self.rule(&publish.identity.queue) == Some(Rule::Ids) => None,
            Outcome::Ok(offset) => Some(Sighting {
                queue: &publish.identity.queue,
                offset,
                identity: &publish.identity,
                source: SightingSource::Confirm(publish),
            }),
            _ => None,
        });
        let deliveries = self.deliveries.iter().filter_map(|delivery| {
            Some(Sighting {
                queue: &delivery.reader.queue,
                offset: delivery.offset,
                identity: delivery.identity.as_ref().ok()?,
                source: SightingSource::Delivery(delivery),
            })
        });
        let browsed = self.views.iter().flat_map(|view| {
            view.contents.iter().filter_map(move |(offset, identity)| {
                Some(Sighting {
                    queue: &view.queue,
                    offset: *offset,
                    identity: identity.as_ref().ok()?,
                    source: SightingSource::View(view),
                })
            })
        });
        confirms.chain(deliveries).chain(browsed)
    }

    /// What a queue promises beyond what every queue does.
    #[must_use]
    pub fn rule(&self, queue: &str) -> Option<Rule> {
        self.rules.get(queue).copied()
    }

    /// The queues that promise this.
    pub fn ruled(&self, rule: Rule) -> impl Iterator<Item = &str> {
        self.rules.iter().filter(move |(_, promised)| **promised == rule).map(|(queue, _)| queue.as_str())
    }

    /// The messages of a queue that were given up, each with the offset at which it lies among the dead letters; as the
    /// last node says that was asked.
    pub fn given_up(&self, queue: &str) -> impl Iterator<Item = (u64, &Identity)> {
        let graveyard = self.dead_letter_queues.get(queue);
        let view = self.views.iter().rev().find(|view| Some(&view.queue) == graveyard);
        let contents = view.into_iter().flat_map(|view| &view.contents);
        contents.filter_map(|(offset, identity)| Some((*offset, identity.as_ref().ok()?)))
    }

    /// Whether a node was asked which messages of a queue were given up.
    #[must_use]
    pub fn given_up_is_known(&self, queue: &str) -> bool {
        let graveyard = self.dead_letter_queues.get(queue);
        graveyard.is_some_and(|graveyard| self.views.iter().any(|view| view.queue == *graveyard))
    }

    /// Whether the cluster's time may be wrong between these moments.
    #[must_use]
    pub fn clocks_wrong_between(&self, from: Moment, to: Moment) -> bool {
        self.clocks_set.iter().any(|set| *set <= to && set.saturating_add(CLOCKS_WRONG_LAST) >= from)
    }

    /// A disturbance whose effects may show between these moments.
    #[must_use]
    pub fn disturbance_between(&self, from: Moment, to: Moment) -> Option<&Disturbance> {
        self.disturbances.iter().find(|disturbance| {
            disturbance.at <= to && disturbance.at.saturating_add(DISTURBANCE_LASTS) >= from
        })
    }

    /// Every event on a line of its own, in the order in which they began: what to search when a run failed.
    #[must_use]
    pub fn transcript(&self) -> String {
        let publishes = self.publishes.iter().map(|publish| (publish.invoked, publish.to_string()));
        let deliveries = self.deliveries.iter().map(|delivery| (delivery.received, delivery.to_string()));
        let settlements =
            self.settlements.iter().map(|settlement| (settlement.invoked, settlement.to_string()));
        let seeks = self.seeks.iter().map(|seek| (seek.invoked, seek.to_string()));
        let disturbances =
            self.disturbances.iter().map(|disturbance| (disturbance.at, disturbance.to_string()));
        let calls = publishes.chain(settlements).chain(seeks);
        let mut events: Vec<_> = calls.chain(deliveries).chain(disturbances).collect();
        events.sort();
        events.into_iter().map(|(_, event)| event + "\n").collect()
    }

    /// Publishes that were confirmed.
    #[must_use]
    pub fn confirmed_count(&self) -> usize {
        self.publishes.iter().filter(|publish| matches!(publish.outcome, Outcome::Ok(_))).count()
    }
}

impl<T> Outcome<T> {
    /// Whether it took effect for certain.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} p{} #{} {:016x}", self.queue, self.producer, self.sequence, self.uuid)
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.queue, self.group)
    }
}

impl<T: fmt::Debug> fmt::Display for Outcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(value) => write!(f, "ok {value:?}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, wishes, outcome, .. } = self;
        write!(f, "{} publish {identity}{wishes}: {outcome}", span(self.invoked, self.returned))
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reader, consumer, offset, attempt, .. } = self;
        write!(f, "[{}] deliver {reader} c{consumer} @{offset} attempt {attempt}: ", seconds(self.received))?;
        match &self.identity {
            Ok(identity) => identity.fmt(f),
            Err(garbled) => f.write_str(garbled.why),
        }
    }
}

impl fmt::Display for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reader, consumer, offset, kind, outcome, .. } = self;
        let span = span(self.invoked, self.returned);
        write!(f, "{span} {kind:?} {reader} c{consumer} @{offset}: {outcome}")
    }
}

impl fmt::Display for Seek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reader, to, outcome, .. } = self;
        write!(f, "{} seek {reader} @{to}: {outcome}", span(self.invoked, self.returned))
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", seconds(self.at), self.what)
    }
}

impl fmt::Display for Sighting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            SightingSource::Confirm(publish) => publish.fmt(f),
            SightingSource::Delivery(delivery) => delivery.fmt(f),
            SightingSource::View(view) => {
                let Self { queue, offset, identity, .. } = self;
                write!(
                    f,
                    "[{}] browse {queue} on node {} @{offset}: {identity}",
                    seconds(view.invoked),
                    view.node_id
                )
            }
        }
    }
}

fn span(invoked: Moment, returned: Option<Moment>) -> String {
    let end = returned.map_or_else(String::new, seconds);
    format!("[{}..{end}]", seconds(invoked))
}

fn seconds(moment: Moment) -> String {
    format!("{:.4}", moment.as_secs_f64())
}
