//! Judges a history. One file for each property; each is a pure function from a history to violations.

use std::fmt;

use crate::history::History;

mod acked_stays_acked;
mod failed_stays_hidden;
mod given_up_once;
mod in_time;
mod keys_in_order;
mod most_urgent_first;
mod no_phantom;
mod nothing_lost;
mod one_message_per_offset;
mod producer_order;
mod redelivery_justified;
mod replicas_agree;
mod seeks_honoured;
mod stored_once;

/// The evidence that is worth printing for one violation.
const EVIDENCE_MAX: usize = 12;

/// The violations of one property that are worth printing.
const PRINTED_PER_PROPERTY_MAX: usize = 5;

/// What the broker promises, as `docs/testing.md` explains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// A confirmed message reaches every group, and stays in a queue that keeps everything.
    NothingLost,
    /// Only what was published is delivered: unharmed, in its queue, and not before.
    NoPhantom,
    /// A publish that was refused for certain never shows.
    FailedStaysHidden,
    /// Everyone sees the same message at an offset.
    OneMessagePerOffset,
    /// Offsets follow the order of each producer's messages, and so do first deliveries.
    ProducerOrder,
    /// After an ack was answered, the group does not get the message again.
    AckedStaysAcked,
    /// A message lies at one offset only, however often its publish was retried.
    StoredOnce,
    /// A message is delivered again only for a reason.
    RedeliveryJustified,
    /// After healing, every node says the same.
    ReplicasAgree,
    /// A message that is to be delivered later does not come earlier.
    NotBeforeDue,
    /// A message whose time to live has ended does not come.
    NotAfterExpiry,
    /// What was given up is a dead letter, once; what was acked is none, and what is neither is not there.
    GivenUpOnce,
    /// A message does not come before those with its key that lie before it are done.
    KeysInOrder,
    /// The most urgent message that waits comes first.
    MostUrgentFirst,
    /// A group goes on from where it was moved to.
    SeeksHonoured,
}

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which.
    pub property: Property,
    /// What happened.
    pub sentence: String,
    /// The events that show it.
    pub evidence: Vec<String>,
}

/// What the checks say about a run.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing was broken, and the run was fit to show it.
    Passed(Summary),
    /// Promises were broken.
    Violated(Vec<Violation>),
    /// Nothing was seen to be broken, but the run was not fit to show it. This is not a pass.
    Unknown(Vec<String>),
}

/// How much a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Messages handed to producers.
    pub published: usize,
    /// Those that were confirmed.
    pub confirmed: usize,
    /// Messages handed to consumers.
    pub delivered: usize,
}

type Check = fn(&History) -> Vec<Violation>;

const CHECKS: [Check; 14] = [
    nothing_lost::check,
    no_phantom::check,
    failed_stays_hidden::check,
    one_message_per_offset::check,
    producer_order::check,
    acked_stays_acked::check,
    stored_once::check,
    redelivery_justified::check,
    replicas_agree::check,
    in_time::check,
    given_up_once::check,
    keys_in_order::check,
    most_urgent_first::check,
    seeks_honoured::check,
];

/// Runs every check.
#[must_use]
pub fn judge(history: &History) -> Verdict {
    let violations: Vec<_> = CHECKS.iter().flat_map(|check| check(history)).collect();
    if !violations.is_empty() {
        return Verdict::Violated(violations);
    }
    let unfit = reasons_to_doubt(history);
    if !unfit.is_empty() {
        return Verdict::Unknown(unfit);
    }
    Verdict::Passed(Summary {
        published: history.publishes.len(),
        confirmed: history.confirmed_count(),
        delivered: history.deliveries.len(),
    })
}

/// Why a history without violations shows nothing.
fn reasons_to_doubt(history: &History) -> Vec<String> {
    let mut reasons = history.unfinished.clone();
    for fault in history.faults_required.difference(&history.faults_done) {
        reasons.push(format!("the fault `{fault}` was promised and never happened"));
    }
    if history.confirmed_count() == 0 {
        reasons.push("no publish was confirmed".to_owned());
    }
    for reader in &history.readers {
        if !history.deliveries.iter().any(|delivery| delivery.reader == *reader) {
            reasons.push(format!("{reader} was delivered nothing"));
        }
    }
    reasons.extend(replicas_agree::reasons_to_doubt(history));
    reasons
}

impl Violation {
    fn new<E: ToString>(property: Property, sentence: String, evidence: impl IntoIterator<Item = E>) -> Self {
        let evidence = evidence.into_iter().take(EVIDENCE_MAX).map(|event| event.to_string()).collect();
        Self { property, sentence, evidence }
    }
}

impl Verdict {
    /// Whether nothing was broken and the run was fit to show it.
    #[must_use]
    pub const fn is_pass(&self) -> bool {
        matches!(self, Self::Passed(_))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.property, self.sentence)?;
        self.evidence.iter().try_for_each(|event| write!(f, "\n    {event}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(Summary { published, confirmed, delivered }) => {
                write!(f, "passed: {published} published, {confirmed} confirmed, {delivered} delivered")
            }
            Self::Unknown(reasons) => {
                write!(f, "unknown, which is no pass:")?;
                reasons.iter().try_for_each(|reason| write!(f, "\n  {reason}"))
            }
            Self::Violated(violations) => {
                write!(f, "violated, {} times:", violations.len())?;
                for same in violations.chunk_by(|a, b| a.property == b.property) {
                    for violation in same.iter().take(PRINTED_PER_PROPERTY_MAX) {
                        write!(f, "\n  {violation}")?;
                    }
                    if let Some(more @ 1..) = same.len().checked_sub(PRINTED_PER_PROPERTY_MAX) {
                        write!(f, "\n  {:?}: {more} more", same[0].property)?;
                    }
                }
                Ok(())
            }
        }
    }
}
