//! Moves dead letters back to where they came from.

mod run;

use bytes::Bytes;
use skein_proto::{
    dead_letter::{self, HEADER_PREFIX, HEADER_QUEUE, HEADER_REASON},
    ids::{Offset, ProducerId, QueueId},
    partitions,
};

use self::run::Redrive;
use crate::{client::Client, error::RedriveError, message::Message};

/// The consumer group that dead letters are taken in, to be moved back.
pub const REDRIVE_GROUP: &str = "skein-redrive";

/// Tells the producers of moved messages from those of whoever else mixes ids of queues and offsets.
const PRODUCER_SALT: u64 = 0x7265_6472_6976_6521;

/// Which dead letters to move back, and where to: all of them to the queues they came from, unless set otherwise.
///
/// ```
/// # use skein_client::{DeadLetterReason, RedriveOptions};
/// let options = RedriveOptions::new().reason(DeadLetterReason::Expired).header("customer", "7").to("orders.late");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedriveOptions {
    to: Option<String>,
    headers: Vec<(String, Bytes)>,
    reason: Option<DeadLetterReason>,
    messages_max: Option<u64>,
}

/// Why a message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterReason {
    /// It came back too often.
    MaxDeliveries,
    /// Nobody took it in time.
    Expired,
    /// Its queue was full, and it was the oldest.
    Overflow,
    /// A consumer rejected it.
    Rejected,
}

/// What became of dead letters so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedriveProgress {
    /// Messages that were moved.
    pub moved_count: u64,
    /// Messages that were looked at and left: they do not match, or do not tell where they came from.
    pub left_count: u64,
    /// It ended because as many messages are left as can be held. There may be others behind them that match.
    pub stopped_early: bool,
}

impl RedriveProgress {
    /// What became of those of another partition as well.
    const fn and(self, other: Self) -> Self {
        Self {
            moved_count: self.moved_count + other.moved_count,
            left_count: self.left_count + other.left_count,
            stopped_early: self.stopped_early || other.stopped_early,
        }
    }
}

impl RedriveOptions {
    /// Everything, to where it came from.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves messages to this queue instead, also those that do not tell where they came from.
    #[must_use]
    pub fn to(mut self, queue: impl Into<String>) -> Self {
        self.to = Some(queue.into());
        self
    }

    /// Moves only messages with this header. Called several times, all of them must be there.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Moves only messages that were given up for this reason.
    #[must_use]
    pub fn reason(mut self, reason: DeadLetterReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Ends after so many messages.
    #[must_use]
    pub fn messages_max(mut self, messages: u64) -> Self {
        self.messages_max = Some(messages);
        self
    }

    /// Where a message of this dead-letter queue is to be moved; nowhere when it is not.
    fn target<'a>(&'a self, message: &'a Message, dead_letter_queue: &str) -> Option<&'a str> {
        let has = |name: &str, value: &[u8]| message.headers.get(name).is_some_and(|found| found == value);
        let matches = self.headers.iter().all(|(name, value)| has(name, value))
            && self.reason.is_none_or(|reason| has(HEADER_REASON, reason.as_str().as_bytes()));
        let origin = || message.headers.get(HEADER_QUEUE).and_then(|queue| std::str::from_utf8(queue).ok());
        let target = self.to.as_deref().or_else(origin);
        // One that went back to where it is taken from would be taken again, without end.
        target.filter(|target| matches && *target != dead_letter_queue)
    }
}

impl DeadLetterReason {
    /// What the header `skein-dead-letter-reason` has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxDeliveries => dead_letter::REASON_MAX_DELIVERIES,
            Self::Expired => dead_letter::REASON_EXPIRED,
            Self::Overflow => dead_letter::REASON_OVERFLOW,
            Self::Rejected => dead_letter::REASON_REJECTED,
        }
    }
}

impl Client {
    /// Moves messages from a dead-letter queue to where they came from, one after the other, without the headers that
    /// made them dead letters. Ends when nothing is left of what was there when it began, and tells `progress` of each
    /// message.
    ///
    /// Nothing is lost, whatever fails: a message is acked in the dead-letter queue once the other queue has confirmed
    /// it. Nor is it doubled when it is moved again because that ack got lost, as long as the other queue remembers it:
    /// for a day, and among the last 10,000.
    ///
    /// Dead letters are taken in the group [`REDRIVE_GROUP`], and those that are left are given back at the end. As
    /// with any queue, a dead letter is kept until every group has acked it: moved ones stay as long as other groups
    /// have not, and from the first time on, others stay until this group has. Where that is not wanted, delete the
    /// group; the next time, everything that is kept is taken again.
    ///
    /// Being looked at counts as a delivery. A message that has used up half of its deliveries that way is put at the
    /// end of the dead-letter queue instead of being given back, so that it is not given up in the end.
    ///
    /// # Errors
    /// When the dead-letter queue or one to move to does not exist or refuses a message, or the cluster does not
    /// answer. What was moved until then stays moved.
    pub async fn redrive(
        &self,
        dead_letter_queue: &str,
        options: RedriveOptions,
        mut progress: impl FnMut(RedriveProgress),
    ) -> Result<RedriveProgress, RedriveError> {
        if options.to.as_deref() == Some(dead_letter_queue) {
            return Err(RedriveError::ToItself { queue: dead_letter_queue.to_owned() });
        }
        let queue = self.get_queue(dead_letter_queue).await?;
        if let Some(to) = &options.to {
            // Rather than after the first messages have been taken.
            self.get_queue(to).await?;
        }
        if !queue.is_partitioned() {
            return Redrive::new(self.clone(), queue, options, progress).run().await;
        }
        // One after the other: a dead letter is told from others by its queue and its offset there.
        let mut done = RedriveProgress::default();
        for partition in 0..queue.settings.partitions.unwrap_or_default() {
            let queue = self.get_queue(&partitions::name(dead_letter_queue, partition)).await?;
            let mut options = options.clone();
            options.messages_max = options.messages_max.map(|max| max.saturating_sub(done.moved_count));
            let of_all = |of_partition| progress(done.and(of_partition));
            let of_partition = Redrive::new(self.clone(), queue, options, of_all).run().await?;
            done = done.and(of_partition);
        }
        Ok(done)
    }
}

fn is_dead_letter(message: &Message) -> bool {
    message.headers.iter().any(|(name, _)| name.starts_with(HEADER_PREFIX))
}

/// The message as it was before it was given up.
fn revived(message: &Message) -> Message {
    let mut message = message.clone();
    message.headers.retain(|name, _| !name.starts_with(HEADER_PREFIX));
    message
}

/// Who publishes a dead letter: always the same, so that it is stored once however often it is sent.
fn producer_id(dead_letter_queue: QueueId, offset: Offset) -> ProducerId {
    ProducerId::mixed([PRODUCER_SALT, dead_letter_queue.get(), offset.get()])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn dead_letter(from: &str, reason: &str) -> Message {
        Message::new("body").headers([(HEADER_QUEUE, from.to_owned()), (HEADER_REASON, reason.to_owned())])
    }

    #[test]
    fn what_matches_goes_to_where_it_came_from() {
        let expired = dead_letter("orders", "expired").header("customer", "7");
        let all = RedriveOptions::new();
        assert_eq!(all.target(&expired, "dead"), Some("orders"));
        assert_eq!(all.target(&Message::new("body"), "dead"), None, "nobody knows where it came from");
        assert_eq!(all.target(&dead_letter("dead", "expired"), "dead"), None, "it would come again");
        let to = all.clone().to("late");
        assert_eq!(to.target(&Message::new("body"), "dead"), Some("late"));

        let matching = all.clone().header("customer", "7").reason(DeadLetterReason::Expired);
        assert_eq!(matching.target(&expired, "dead"), Some("orders"));
        assert_eq!(matching.target(&dead_letter("orders", "expired"), "dead"), None);
        let others = [
            all.clone().header("customer", "7").header("country", "no"),
            all.clone().header("customer", "70"),
            all.clone().reason(DeadLetterReason::Overflow),
            all.reason(DeadLetterReason::MaxDeliveries).to("late"),
        ];
        for options in others {
            assert_eq!(options.target(&expired, "dead"), None, "{options:?}");
        }
    }

    #[test]
    fn only_what_the_node_has_added_is_taken_away() {
        let message = Message::new("body").key("k").header("skein-dead", "mine").priority(3);
        let headers = ["queue", "group", "offset", "attempts", "reason", "time-ms"];
        let headers = headers.map(|name| (format!("{HEADER_PREFIX}{name}"), "x"));
        assert_eq!(revived(&message.clone().headers(headers)), message);
    }

    #[test]
    fn each_dead_letter_has_one_producer_of_its_own() {
        let id = |queue, offset| producer_id(QueueId::new(queue), Offset::new(offset)).get();
        let ids: BTreeSet<_> =
            (0..100).flat_map(|queue| (0..100).map(move |offset| id(queue, offset))).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(!ids.contains(&0));
        assert_eq!(id(7, 9), id(7, 9));
    }
}
