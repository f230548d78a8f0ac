//! What a consumer has received and not looked at, and what it has settled. No I/O.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Poll, Waker},
};

use skein_proto::{broker::Reason, ids::Offset, node};
use tonic::Code;

use super::acks::{Answer, Settle, Settled, Settlements};
use crate::{
    error::{Cause, ConsumeError, SettleError},
    outcome::Outcome,
};

/// A batch, and the stream it came on.
pub(super) type Received = (node::DeliveryBatch, u64);

/// The state of one consumer. Bounded by its credit: what is here was delivered and is not settled.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    batches: VecDeque<node::DeliveryBatch>,
    settlements: Settlements,
    /// Numbers the streams; what an earlier one delivered cannot be settled any more.
    stream: u64,
    /// Messages delivered on this stream and not settled on it.
    held_count: u64,
    error: Option<ConsumeError>,
    is_closed: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
}

/// Whom to tell what, once the inbox is not locked any more.
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<(Arc<Outcome<Answer>>, Answer)>);

impl Inbox {
    /// The next batch; an error once, and then nothing.
    pub(super) fn poll_batch(&mut self, reader: &Waker) -> Poll<Option<Result<Received, ConsumeError>>> {
        if let Some(batch) = self.batches.pop_front() {
            return Poll::Ready(Some(Ok((batch, self.stream))));
        }
        if let Some(error) = self.error.take() {
            self.is_closed = true;
            return Poll::Ready(Some(Err(error)));
        }
        if self.is_closed {
            return Poll::Ready(None);
        }
        self.reader = Some(reader.clone());
        Poll::Pending
    }

    /// Settles messages that came on `stream`. Returns whom to wake.
    pub(super) fn settle(
        &mut self,
        stream: u64,
        settle: Settle,
        first: Offset,
        count: u32,
    ) -> (Settled, Option<Waker>) {
        if stream != self.stream {
            let cause =
                Cause::new(Code::Aborted, Reason::LeaseLost, "the stream it was delivered on has ended");
            return (Settled::failed(SettleError::LeaseLost(cause)), None);
        }
        let settled = self.settlements.add(settle, first, count);
        (settled, self.sender_if_sendable())
    }

    /// Begins a stream. The one before must have been lost.
    pub(super) fn begin_stream(&mut self) -> u64 {
        self.stream += 1;
        self.stream
    }

    /// What is to be sent on `stream`: None at its end.
    pub(super) fn poll_send(&mut self, stream: u64, sender: &Waker) -> Poll<Option<node::StreamSettle>> {
        if stream != self.stream {
            return Poll::Ready(None);
        }
        if let Some(settle) = self.settlements.next_to_send() {
            return Poll::Ready(Some(settle));
        }
        if self.is_closed && self.settlements.is_idle() {
            return Poll::Ready(None);
        }
        self.sender = Some(sender.clone());
        Poll::Pending
    }

    /// Takes what a node sent. Returns whom to tell what and whom to wake.
    pub(super) fn receive(&mut self, response: node::ConsumeResponse) -> (Answers, [Option<Waker>; 2]) {
        let mut answers = Answers::default();
        for result in response.settled {
            if let Some((outcome, answer, released_count)) = self.settlements.answer(result) {
                self.held_count = self.held_count.saturating_sub(released_count);
                answers.0.push((outcome, answer));
            }
        }
        let mut reader = None;
        if !self.is_closed && !response.deliveries.is_empty() {
            self.held_count += response.deliveries.iter().map(|batch| u64::from(batch.count)).sum::<u64>();
            self.batches.extend(response.deliveries);
            reader = self.reader.take();
        }
        (answers, [reader, self.sender_if_sendable()])
    }

    /// The stream is lost, and every lease on it. Returns whom to tell what and whom to wake: who sends on the stream
    /// must learn of its end. As long as it waits, the stream is only half closed, and the node keeps delivering on it.
    pub(super) fn lose_stream(&mut self, cause: &Cause) -> (Answers, Option<Waker>) {
        self.stream += 1;
        self.batches.clear();
        self.held_count = 0;
        (Answers(self.settlements.lose(cause)), self.sender.take())
    }

    /// There will be no more messages.
    pub(super) fn fail(&mut self, error: ConsumeError) -> Option<Waker> {
        self.error = Some(error);
        self.reader.take()
    }

    pub(super) fn close(&mut self) -> Option<Waker> {
        self.is_closed = true;
        self.batches.clear();
        self.sender.take()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Ending the stream would cause no message to be delivered again.
    pub(super) fn holds_nothing(&self) -> bool {
        self.held_count == 0
    }

    fn sender_if_sendable(&mut self) -> Option<Waker> {
        let may_end = self.is_closed && self.settlements.is_idle();
        if may_end || self.settlements.is_sendable() { self.sender.take() } else { None }
    }
}

impl Answers {
    pub(super) fn publish(self) {
        for (outcome, answer) in self.0 {
            outcome.set(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first_offset: u64, count: u32) -> node::DeliveryBatch {
        node::DeliveryBatch { first_offset, count, attempt: 1, ..Default::default() }
    }

    fn delivery(first_offset: u64, count: u32) -> node::ConsumeResponse {
        node::ConsumeResponse { deliveries: vec![batch(first_offset, count)], ..Default::default() }
    }

    fn lost() -> Cause {
        Cause::new(Code::Unavailable, Reason::Unspecified, "gone")
    }

    #[tokio::test]
    async fn leases_end_with_their_stream() {
        let mut inbox = Inbox::default();
        let stream = inbox.begin_stream();
        let (answers, _) = inbox.receive(delivery(0, 10));
        answers.publish();
        let Poll::Ready(Some(Ok((taken, on)))) = inbox.poll_batch(Waker::noop()) else { panic!("no batch") };
        assert_eq!((taken.first_offset, on), (0, stream));

        inbox.receive(delivery(10, 10)).0.publish();
        inbox.lose_stream(&lost()).0.publish();
        assert!(inbox.poll_batch(Waker::noop()).is_pending(), "what was not taken is delivered again");
        inbox.begin_stream();
        let (settled, _) = inbox.settle(on, Settle::Ack, Offset::ZERO, 1);
        assert!(matches!(settled.await, Err(SettleError::LeaseLost(_))));
    }

    #[test]
    fn who_sends_on_a_lost_stream_learns_of_its_end() {
        let mut inbox = Inbox::default();
        let stream = inbox.begin_stream();
        assert!(inbox.poll_send(stream, Waker::noop()).is_pending());
        let (answers, sender) = inbox.lose_stream(&lost());
        answers.publish();
        assert!(sender.is_some(), "nobody else would wake it");
        assert!(matches!(inbox.poll_send(stream, Waker::noop()), Poll::Ready(None)));
    }

    #[test]
    fn a_closed_consumer_sends_its_acks_before_the_end() {
        let mut inbox = Inbox::default();
        let stream = inbox.begin_stream();
        inbox.receive(delivery(0, 1)).0.publish();
        let (_settled, _) = inbox.settle(stream, Settle::Ack, Offset::ZERO, 1);
        inbox.close();
        let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        assert!(inbox.poll_send(stream, Waker::noop()).is_pending());
        let settled = vec![node::SettleResult { settle_id: sent.settle_id, failures: Vec::new() }];
        let (answers, [_, sender]) = inbox.receive(node::ConsumeResponse { settled, ..Default::default() });
        answers.publish();
        assert!(sender.is_some());
        assert!(matches!(inbox.poll_send(stream, Waker::noop()), Poll::Ready(None)));
        assert!(inbox.holds_nothing());
    }

    #[test]
    fn an_error_comes_once_and_ends_the_stream() {
        let mut inbox = Inbox::default();
        assert!(inbox.poll_batch(Waker::noop()).is_pending());
        assert!(inbox.fail(ConsumeError::NotAccepted(lost())).is_some());
        assert!(matches!(inbox.poll_batch(Waker::noop()), Poll::Ready(Some(Err(_)))));
        assert!(matches!(inbox.poll_batch(Waker::noop()), Poll::Ready(None)));
    }
}
