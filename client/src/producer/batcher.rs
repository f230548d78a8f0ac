//! Gathers messages into batches, numbers them, and decides what became of each. No I/O; time is an argument.

use std::{collections::VecDeque, sync::Arc, task::Waker, time::Duration};

use bytes::{Bytes, BytesMut};
use skein_proto::{
    broker::Reason,
    ids::{Offset, ProducerId, Sequence},
    limits, node,
};
use tokio::time::Instant;
use tonic::Code;

use super::confirm::{BatchOutcome, Confirm, Place, Placed};
use crate::{
    calls::random_producer_id,
    error::{Cause, ConfirmError, SendError},
    message::EncodableMessage,
};

/// Batches that are sent as soon as there is a message for them: one can travel while the other is written. Beyond
/// that, messages gather until a confirm arrives or there are [`BATCH_WORTH_BYTES`]; few large batches cost less.
const EAGER_BATCHES_IN_FLIGHT: usize = 2;

/// What is worth a batch of its own while others are in flight.
const BATCH_WORTH_BYTES: usize = 32 << 10;

/// The smallest buffer for a batch. One page: a lone message wastes little.
const BUFFER_BYTES_MIN: usize = 4 << 10;

/// What the window and a batch hold at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) window_bytes: usize,
    pub(super) window_messages: usize,
    pub(super) batch_bytes: usize,
    pub(super) batch_messages: usize,
    pub(super) message_bytes: usize,
}

/// Why a message was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    For(SendError),
}

/// A confirm that contradicts what was sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node confirmed batch {confirmed}, and the one to be confirmed next is {expected}")]
pub(super) struct UnexpectedConfirm {
    confirmed: Sequence,
    expected: Sequence,
}

/// Batches whose outcome is known. To be published when the batcher is not locked any more.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Settled(Vec<(Arc<BatchOutcome>, Result<Placed, ConfirmError>)>);

/// Every message that is not confirmed, in the order they were sent.
#[derive(Debug)]
pub(super) struct Batcher {
    limits: Limits,
    delivery_timeout: Duration,
    producer_id: ProducerId,
    /// The sequence of the first of `batches`; the others follow without a gap.
    first_sequence: Sequence,
    /// Complete batches. Those that were ever sent come first.
    batches: VecDeque<Batch>,
    /// How many of `batches` were sent on the present stream.
    in_flight_count: usize,
    /// What gathers behind them.
    open: Option<OpenBatch>,
    window_bytes_used: usize,
    window_messages_used: usize,
    /// The size of the buffer for the next batch, so that it seldom has to grow.
    buffer_bytes: usize,
    /// Numbers the streams; an earlier one has nothing to send any more.
    stream: u64,
    stream_waker: Option<Waker>,
    last_failure: Option<Cause>,
    first_failure: Option<ConfirmError>,
    is_closed: bool,
    /// It publishes to a topic, of whose queues one may have what another one refuses.
    is_topic: bool,
}

#[derive(Debug)]
struct Batch {
    bytes: Bytes,
    message_count: u32,
    created: Instant,
    /// On how many streams it was sent.
    sent_count: u32,
    outcome: Arc<BatchOutcome>,
}

/// A batch that was refused whole.
#[derive(Debug)]
pub(super) struct Unstored {
    pub(super) bytes: Bytes,
    pub(super) created: Instant,
    pub(super) outcome: Arc<BatchOutcome>,
}

#[derive(Debug)]
struct OpenBatch {
    bytes: BytesMut,
    message_count: u32,
    created: Instant,
    outcome: Arc<BatchOutcome>,
}

impl Batcher {
    pub(super) fn new(limits: Limits, delivery_timeout: Duration) -> Self {
        Self {
            limits,
            delivery_timeout,
            producer_id: ProducerId::new(random_producer_id()),
            first_sequence: Sequence::FIRST,
            batches: VecDeque::new(),
            in_flight_count: 0,
            open: None,
            window_bytes_used: 0,
            window_messages_used: 0,
            buffer_bytes: BUFFER_BYTES_MIN,
            stream: 0,
            stream_waker: None,
            last_failure: None,
            first_failure: None,
            is_closed: false,
            is_topic: false,
        }
    }

    pub(super) fn has_room(&self, message: &EncodableMessage) -> bool {
        self.is_closed
            || self.window_messages_used == 0
            || (self.window_messages_used < self.limits.window_messages
                && self.window_bytes_used + message.batch_bytes() <= self.limits.window_bytes)
    }

    /// Takes a message. `now` is asked only when a batch begins.
    pub(super) fn push(
        &mut self,
        message: &EncodableMessage,
        now: impl FnOnce() -> Instant,
    ) -> Result<Confirm, Refused> {
        let (bytes, bytes_max) = (message.message_bytes(), self.limits.message_bytes);
        if self.is_closed {
            return Err(Refused::For(SendError::Closed));
        }
        if bytes > bytes_max {
            return Err(Refused::For(SendError::TooLarge { bytes, bytes_max }));
        }
        if !self.has_room(message) {
            return Err(Refused::Full);
        }
        Ok(Confirm::new(self.add(message, now)))
    }

    /// Takes a message that was taken before, whether or not there is room.
    pub(super) fn add(&mut self, message: &EncodableMessage, now: impl FnOnce() -> Instant) -> Place {
        let batch_bytes = message.batch_bytes();
        if let Some(open) = &self.open
            && (open.bytes.len() + batch_bytes > self.limits.batch_bytes
                || open.message_count as usize >= self.limits.batch_messages)
        {
            self.seal();
        }
        self.window_bytes_used += batch_bytes;
        self.window_messages_used += 1;
        let buffer_bytes = self.buffer_bytes;
        let open = self.open.get_or_insert_with(|| OpenBatch {
            bytes: BytesMut::with_capacity(buffer_bytes.max(batch_bytes)),
            message_count: 0,
            created: now(),
            outcome: Arc::new(BatchOutcome::pending()),
        });
        message.append_to(&mut open.bytes);
        open.message_count += 1;
        Place { batch: Arc::clone(&open.outcome), index: open.message_count - 1 }
    }

    /// Takes out everything, of which nothing is stored: the first batch of the stream was refused, and the others with
    /// it. Their sequences are free again.
    pub(super) fn take_unstored(&mut self) -> Vec<Unstored> {
        self.end_stream();
        self.seal();
        (self.in_flight_count, self.window_bytes_used, self.window_messages_used) = (0, 0, 0);
        let batches = self.batches.drain(..);
        batches.map(|Batch { bytes, created, outcome, .. }| Unstored { bytes, created, outcome }).collect()
    }

    /// Whom to wake if there is something to send now.
    pub(super) fn waker_if_sendable(&mut self) -> Option<Waker> {
        if self.stream_waker.is_some() && self.is_sendable() { self.stream_waker.take() } else { None }
    }

    /// Begins a stream: everything unconfirmed is sent again. Returns its number and what it opens with.
    pub(super) fn begin_stream(&mut self) -> (u64, ProducerId) {
        self.end_stream();
        self.in_flight_count = 0;
        (self.stream, self.producer_id)
    }

    pub(super) fn is_current(&self, stream: u64) -> bool {
        self.stream == stream
    }

    /// The present stream is over: it gets nothing more to send.
    pub(super) fn end_stream(&mut self) {
        self.stream += 1;
        self.stream_waker = None;
    }

    /// What to send next, if it is time to send anything.
    pub(super) fn next_to_send(&mut self) -> Option<(Sequence, Bytes)> {
        if !self.is_sendable() {
            return None;
        }
        if self.in_flight_count == self.batches.len() {
            self.seal();
        }
        let sequence = Sequence::new(self.first_sequence.get() + self.in_flight_count as u64);
        let batch = &mut self.batches[self.in_flight_count];
        batch.sent_count += 1;
        self.in_flight_count += 1;
        Some((sequence, batch.bytes.clone()))
    }

    /// Remembers whom to wake when there is something to send.
    pub(super) fn wait_to_send(&mut self, waker: &Waker) {
        self.stream_waker = Some(waker.clone());
    }

    /// Lowers the limits to those of the node.
    pub(super) fn opened(&mut self, opened: &node::PublishOpened) {
        let at_most = |limit: &mut usize, told: u64| {
            if told != 0 {
                *limit = (*limit).min(usize::try_from(told).unwrap_or(usize::MAX));
            }
        };
        at_most(&mut self.limits.message_bytes, opened.message_bytes_max);
        at_most(&mut self.limits.batch_bytes, opened.batch_bytes_max);
        at_most(&mut self.limits.batch_messages, opened.batch_messages_max.into());
        self.is_topic = opened.is_topic;
    }

    /// The node stored a batch. A confirm for one that is confirmed already is normal after a reconnect.
    pub(super) fn confirm(
        &mut self,
        confirm: &node::Confirm,
        settled: &mut Settled,
    ) -> Result<(), UnexpectedConfirm> {
        let confirmed = Sequence::new(confirm.sequence);
        if confirmed < self.first_sequence {
            return Ok(());
        }
        let as_sent = self.batches.front().is_some_and(|batch| batch.message_count == confirm.count);
        if confirmed != self.first_sequence || self.in_flight_count == 0 || !as_sent {
            return Err(UnexpectedConfirm { confirmed, expected: self.first_sequence });
        }
        self.take_first(Ok(Placed::At(Offset::new(confirm.first_offset))), settled);
        Ok(())
    }

    /// The stream ended for a reason that will not go away. Fails what it certainly or possibly hit, and prepares the
    /// rest to be sent by a producer that the cluster has not seen: sequences must stay without gaps.
    pub(super) fn refuse(&mut self, cause: &Cause) -> Settled {
        let mut settled = Settled::default();
        match scope_of(cause.reason) {
            Scope::Batch => {
                if self.in_flight_count > 0 {
                    self.take_first(Err(ConfirmError::NotAccepted(cause.clone())), &mut settled);
                }
            }
            Scope::Routing => {
                self.fail_sent_more_than(1, cause, &mut settled);
                if settled.is_empty() && self.in_flight_count > 0 {
                    self.take_first(Err(ConfirmError::NotAccepted(cause.clone())), &mut settled);
                }
            }
            Scope::Sequences => self.fail_possibly_stored(cause, &mut settled),
            Scope::Queue => {
                self.fail_possibly_stored(cause, &mut settled);
                self.seal();
                while !self.batches.is_empty() {
                    self.take_first(Err(ConfirmError::NotAccepted(cause.clone())), &mut settled);
                }
            }
        }
        self.become_another_producer();
        settled
    }

    /// Remembers why the last stream ended, to tell those who wait in vain.
    pub(super) fn note_failure(&mut self, cause: Cause) {
        self.last_failure = Some(cause);
    }

    /// Fails what has waited for too long. Says whether the present stream has to be given up.
    pub(super) fn expire(&mut self, now: Instant) -> (Settled, bool) {
        let mut settled = Settled::default();
        let has_expired = |created: Instant| now.duration_since(created) >= self.delivery_timeout;
        if self.open.as_ref().is_some_and(|open| has_expired(open.created)) {
            self.seal();
        }
        let has_expired = |batch: &Batch| now.duration_since(batch.created) >= self.delivery_timeout;
        let expired_count = self.batches.iter().take_while(|batch| has_expired(batch)).count();
        if expired_count == 0 {
            return (settled, false);
        }
        let cause = self.timeout_cause();
        let sent_expired = self.batches[0].sent_count > 0;
        if sent_expired {
            while self.batches.front().is_some_and(|batch| batch.sent_count > 0) {
                self.take_first(Err(ConfirmError::OutcomeUnknown(cause.clone())), &mut settled);
            }
            self.become_another_producer();
        }
        for _ in settled.0.len()..expired_count {
            self.take_first(Err(ConfirmError::NotAccepted(cause.clone())), &mut settled);
        }
        (settled, sent_expired)
    }

    pub(super) fn close(&mut self) -> Option<Waker> {
        self.is_closed = true;
        self.stream_waker.take()
    }

    /// Closed, and nothing is left to wait for.
    pub(super) fn is_finished(&self) -> bool {
        self.is_closed && self.batches.is_empty() && self.open.is_none()
    }

    /// The outcome that comes last of all that are not known yet.
    pub(super) fn last_outcome(&self) -> Option<Arc<BatchOutcome>> {
        let open = self.open.as_ref().map(|open| &open.outcome);
        open.or_else(|| self.batches.back().map(|batch| &batch.outcome)).cloned()
    }

    pub(super) fn take_first_failure(&mut self) -> Option<ConfirmError> {
        self.first_failure.take()
    }

    fn is_sendable(&self) -> bool {
        let open_bytes = self.open.as_ref().map_or(0, |open| open.bytes.len());
        let has_sealed = self.in_flight_count < self.batches.len();
        self.in_flight_count < limits::PRODUCER_BATCHES_IN_FLIGHT_MAX
            && (has_sealed
                || open_bytes >= BATCH_WORTH_BYTES
                || open_bytes > 0 && self.in_flight_count < EAGER_BATCHES_IN_FLIGHT)
    }

    fn seal(&mut self) {
        let Some(OpenBatch { bytes, message_count, created, outcome }) = self.open.take() else {
            return;
        };
        self.buffer_bytes = bytes.len().next_power_of_two().max(BUFFER_BYTES_MIN);
        self.batches.push_back(Batch {
            bytes: bytes.freeze(),
            message_count,
            created,
            sent_count: 0,
            outcome,
        });
    }

    /// Takes the first batch out.
    fn take_first(&mut self, outcome: Result<Placed, ConfirmError>, settled: &mut Settled) {
        let batch = self.batches.pop_front().expect("callers have seen that there is one");
        if self.in_flight_count > 0 {
            self.in_flight_count -= 1;
        }
        // One that was never sent has not used its sequence up.
        if batch.sent_count > 0 {
            self.first_sequence = self.first_sequence.next();
        }
        self.window_bytes_used -= batch.bytes.len();
        self.window_messages_used -= batch.message_count as usize;
        if let Err(error) = &outcome {
            self.first_failure.get_or_insert_with(|| error.clone());
        }
        settled.0.push((batch.outcome, outcome));
    }

    /// What an earlier stream carried may have been stored then, whatever this one was told. And what this one carried
    /// may be in other queues of the topic than the one that refused it.
    fn fail_possibly_stored(&mut self, cause: &Cause, settled: &mut Settled) {
        let sent_in_vain = if self.is_topic { 0 } else { 1 };
        self.fail_sent_more_than(sent_in_vain, cause, settled);
    }

    fn fail_sent_more_than(&mut self, count: u32, cause: &Cause, settled: &mut Settled) {
        while self.batches.front().is_some_and(|batch| batch.sent_count > count) {
            self.take_first(Err(ConfirmError::OutcomeUnknown(cause.clone())), settled);
        }
    }

    fn become_another_producer(&mut self) {
        self.end_stream();
        self.producer_id = ProducerId::new(random_producer_id());
        self.first_sequence = Sequence::FIRST;
        self.in_flight_count = 0;
        // What is left was certainly not stored: the new producer begins with a clean slate.
        self.batches.iter_mut().for_each(|batch| batch.sent_count = 0);
    }

    fn timeout_cause(&self) -> Cause {
        let (reason, last) = match &self.last_failure {
            Some(cause) => (cause.reason, cause.message.as_ref()),
            None => (Reason::Unspecified, "the node did not answer"),
        };
        let sentence = format!("not confirmed within {:?}; last: {last}", self.delivery_timeout);
        Cause::new(Code::DeadlineExceeded, reason, sentence)
    }
}

impl Settled {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells those who wait.
    pub(super) fn publish(self) {
        for (batch, outcome) in self.0 {
            batch.set(outcome);
        }
    }
}

/// What a refusal is about.
enum Scope {
    /// The one batch that it answers.
    Batch,
    /// The same, by bindings that may have been others when it was sent before.
    Routing,
    /// What the cluster remembers of this producer.
    Sequences,
    /// Whatever is published to the queue.
    Queue,
}

fn scope_of(reason: Reason) -> Scope {
    match reason {
        Reason::MessageTooLarge
        | Reason::BatchTooLarge
        | Reason::BatchEmpty
        | Reason::MalformedMessage
        | Reason::InvalidProperty => Scope::Batch,
        Reason::NotRouted => Scope::Routing,
        Reason::SequenceGap | Reason::SequenceTooOld => Scope::Sequences,
        _ => Scope::Queue,
    }
}

#[cfg(test)]
mod tests;
