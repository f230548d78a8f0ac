//! Queues that promise more than every queue does: how they are set up, what their messages ask for, and how they are
//! consumed so that a broken promise would show. Whether it was kept is judged by `checks`.

use std::{fmt, time::Duration};

use rand::{RngExt as _, rngs::SmallRng};
use skein_client::{Message, QueueSettings, Retention};

use crate::{history::SettlementKind, stamp::Identity, workload::Plan};

/// The only group of such a queue that reads it.
const GROUP: &str = "work";

/// Keys of messages, where those of each are to be handled in order.
const KEYS: u64 = 8;

/// One message in so many fails whenever it is delivered.
const FAILS_ONE_IN: u64 = 10;

/// Of those, one in so many is rejected, and the others come again.
const REJECTED_ONE_IN: u64 = 3;

/// Deliveries of a message before it is given up.
const DELIVERIES_MAX: u32 = 3;

/// Longer than any run.
const DEDUP_WINDOW: Duration = Duration::from_secs(3_600);

/// One message in so many is followed by a break, in which others come to wait: so rare that consumers keep up.
const BREAK_ONE_IN: u64 = 200;

/// How long after its time to live a message may still arrive: it was on its way by then.
pub const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// What a queue promises beyond what every queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No message comes before it is due, nor after its time to live: then it is a dead letter.
    Timed,
    /// A message that fails too often, or is rejected, is a dead letter, once, and is not lost.
    GivenUp,
    /// Messages of a key are handled one at a time, in their order.
    Keyed,
    /// A message is stored once, whoever publishes it.
    Ids,
    /// The most urgent message that waits comes first.
    Urgent,
    /// A group goes on from where it was moved to.
    Moved,
}

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Not to be delivered for so long.
    pub delay: Option<Duration>,
    /// To be given up when nobody takes it for so long, from when it is due.
    pub ttl: Option<Duration>,
    /// How urgent it is; 9 is the most.
    pub priority: u8,
    /// What it is about.
    pub key: Option<u64>,
}

/// What a consumer does about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handling {
    /// It does not ack the message, however often it comes.
    pub fails: Option<SettlementKind>,
    /// How it takes a break afterwards.
    pub pause: Option<Pause>,
}

/// A break of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// For how long.
    pub lasts: Duration,
    /// It leaves, so that it holds nothing meanwhile, and comes back.
    pub leaves: bool,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Timed, Self::GivenUp, Self::Keyed, Self::Ids, Self::Urgent, Self::Moved];

    /// The queue that promises it.
    #[must_use]
    pub const fn queue(self) -> &'static str {
        match self {
            Self::Timed => "reminders",
            Self::GivenUp => "payments",
            Self::Keyed => "accounts",
            Self::Ids => "events",
            Self::Urgent => "alarms",
            Self::Moved => "prices",
        }
    }

    /// Where that queue's messages go that are given up.
    #[must_use]
    pub const fn dead_letter_queue(self) -> Option<&'static str> {
        match self {
            Self::Timed => Some("reminders-missed"),
            Self::GivenUp => Some("payments-failed"),
            Self::Keyed | Self::Ids | Self::Urgent | Self::Moved => None,
        }
    }

    /// That queue's settings.
    #[must_use]
    pub fn settings(self) -> QueueSettings {
        let dead_letter_queue = self.dead_letter_queue().map(str::to_owned);
        let settings = QueueSettings { dead_letter_queue, ..QueueSettings::default() };
        match self {
            Self::GivenUp => QueueSettings { max_deliveries: Some(DELIVERIES_MAX), ..settings },
            Self::Keyed => QueueSettings { order_by_key: true, ..settings },
            Self::Ids => QueueSettings { dedup_window: Some(DEDUP_WINDOW), ..settings },
            Self::Moved => QueueSettings { retention: Retention::Limits, ..settings },
            Self::Timed | Self::Urgent => settings,
        }
    }

    /// Who publishes to that queue and who consumes from it: about 50 messages a second, which is little enough to
    /// judge besides everything else.
    #[must_use]
    pub fn plan(self) -> Plan {
        let (producers, consumers) = match self {
            // When the only one takes a break, messages wait.
            Self::Timed | Self::Urgent => (1, 1),
            Self::Ids => (2, 2),
            Self::GivenUp | Self::Keyed | Self::Moved => (1, 3),
        };
        Plan {
            queues: vec![self.queue().to_owned()],
            rule: Some(self),
            producers,
            groups: vec![GROUP.to_owned()],
            // A group that never acks would give up whatever has a time to live.
            keeps: self.dead_letter_queue().is_none(),
            consumers,
            burst_messages: 1,
            ..Plan::default()
        }
    }

    /// Messages that a consumer may hold.
    #[must_use]
    pub const fn credit_messages(self) -> Option<u32> {
        match self {
            // What it holds was the most urgent when it was sent, which may be long ago.
            Self::Urgent => Some(1),
            Self::Timed | Self::GivenUp | Self::Keyed | Self::Ids | Self::Moved => None,
        }
    }

    /// Whether all producers publish the same messages.
    #[must_use]
    pub const fn shares_messages(self) -> bool {
        matches!(self, Self::Ids)
    }

    /// Whether a consumer gets messages in the order in which they were published, as long as none comes back.
    #[must_use]
    pub const fn keeps_order(self) -> bool {
        match self {
            Self::Timed | Self::Keyed | Self::Urgent => false,
            Self::GivenUp | Self::Ids | Self::Moved => true,
        }
    }

    /// What a message asks for.
    pub fn wishes(self, identity: &Identity, random: &mut SmallRng) -> Wishes {
        let plain = Wishes::default();
        let millis = |random: &mut SmallRng, range| Some(Duration::from_millis(random.random_range(range)));
        match self {
            Self::Timed => match random.random_range(0..10) {
                0..4 => plain,
                4..7 => Wishes { delay: millis(random, 50..2_000), ..plain },
                7..9 => Wishes { ttl: millis(random, 100..800), ..plain },
                _ => Wishes { delay: millis(random, 50..2_000), ttl: millis(random, 100..800), ..plain },
            },
            Self::Keyed => Wishes { key: Some(identity.uuid % KEYS), ..plain },
            Self::Urgent => Wishes { priority: random.random_range(0..10), ..plain },
            Self::GivenUp | Self::Ids | Self::Moved => plain,
        }
    }

    /// A message as its publisher sends it.
    #[must_use]
    pub fn dress(self, message: Message, identity: &Identity, wishes: &Wishes) -> Message {
        let mut message = message.priority(wishes.priority);
        if let Some(delay) = wishes.delay {
            message = message.delay(delay);
        }
        if let Some(ttl) = wishes.ttl {
            message = message.ttl(ttl);
        }
        if let Some(key) = wishes.key {
            message = message.key(format!("key-{key}"));
        }
        if self == Self::Ids {
            message = message.message_id(format!("{:016x}", identity.uuid));
        }
        message
    }

    /// What a consumer does about a message.
    #[must_use]
    pub fn handling(self, identity: &Identity) -> Handling {
        // Drawn with the message, so that it fails wherever it comes.
        let fails = self == Self::GivenUp && identity.uuid.is_multiple_of(FAILS_ONE_IN);
        let is_rejected = identity.sequence.is_multiple_of(REJECTED_ONE_IN);
        let kind = if is_rejected { SettlementKind::Reject } else { SettlementKind::Nack };
        let breaks = (identity.uuid / FAILS_ONE_IN).is_multiple_of(BREAK_ONE_IN);
        let pause = match self {
            Self::Timed => Some(Pause { lasts: Duration::from_secs(3), leaves: true }),
            Self::Urgent => Some(Pause { lasts: Duration::from_millis(500), leaves: false }),
            Self::Keyed => Some(Pause { lasts: Duration::from_millis(300), leaves: true }),
            Self::GivenUp | Self::Ids | Self::Moved => None,
        };
        Handling { fails: fails.then_some(kind), pause: pause.filter(|_| breaks) }
    }
}

impl fmt::Display for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delay, ttl, priority, key } = self;
        if let Some(delay) = delay {
            write!(f, ", in {delay:?}")?;
        }
        if let Some(ttl) = ttl {
            write!(f, ", for {ttl:?}")?;
        }
        if *priority > 0 {
            write!(f, ", priority {priority}")?;
        }
        key.map_or(Ok(()), |key| write!(f, ", key {key}"))
    }
}
