//! What a consumer has received and not looked at, and what it has settled. No I/O.

use std::{
    collections::VecDeque,
    mem,
    task::{Poll, Waker},
    time::Duration,
};

use skein_proto::{broker::Reason, ids::Offset, node};
use tonic::Code;

use super::{
    acks::{Resumed, Settle, Settled, Settlements, Told},
    held::Held,
};
use crate::error::{Cause, ConsumeError, SettleError};

/// The state of one consumer. Bounded by its credit: what is here was delivered and is not settled.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    batches: VecDeque<node::DeliveryBatch>,
    settlements: Settlements,
    /// Numbers the streams.
    stream: u64,
    /// What was delivered, and not been acked or returned here since.
    held: Held,
    /// The last stream is lost, and the next one has not yet said what of it goes on.
    is_suspended: bool,
    /// What the next one was asked to go on with.
    asked: Held,
    /// How many consumers the group had, as was told last.
    group_consumers: u32,
    /// Who this is, as the leader of the last stream told.
    consumer_id: u64,
    error: Option<ConsumeError>,
    is_closed: bool,
    /// What nobody had looked at when it was closed.
    unseen: Held,
    /// The node has been told what somebody has.
    has_left: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
}

/// Whom to tell what, once the inbox is not locked any more.
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<Told>);

impl Inbox {
    /// The next batch; an error once, and then nothing.
    pub(super) fn poll_batch(
        &mut self,
        reader: &Waker,
    ) -> Poll<Option<Result<node::DeliveryBatch, ConsumeError>>> {
        if let Some(batch) = self.batches.pop_front() {
            return Poll::Ready(Some(Ok(batch)));
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

    /// Settles messages. Returns whom to wake.
    pub(super) fn settle(&mut self, settle: Settle, first: Offset, count: u32) -> (Settled, Option<Waker>) {
        let range = node::OffsetRange { first: first.get(), count };
        // Two that settle the same, as when a slow one's message came here again, are both for the node to judge.
        if !self.held.has_all(&range) && !self.unanswered().has_all(&range) {
            return (Settled::failed(SettleError::LeaseLost(lease_lost())), None);
        }
        let settled = self.settlements.add(settle, first, count);
        if !matches!(settle, Settle::Extend { .. }) {
            // Now, and not with the answer: it may be delivered here again before that comes, and it may be refused.
            self.held.remove(&range);
        }
        (settled, self.sender_if_sendable())
    }

    /// Begins a stream; the one before must have been lost. Returns what to resume, if there was one.
    pub(super) fn begin_stream(&mut self) -> (u64, Option<node::Resume>) {
        self.stream += 1;
        let Self { group_consumers, consumer_id, .. } = *self;
        let resume = self.is_suspended.then(|| node::Resume {
            held: self.unanswered().ranges(),
            group_consumers,
            consumer_id,
        });
        self.asked = Held::of(resume.as_ref().map_or(&[], |resume| &resume.held));
        (self.stream, resume)
    }

    /// What was delivered and, as far as nodes have answered, not been acked or returned.
    fn unanswered(&self) -> Held {
        let mut unanswered = self.held.clone();
        self.settlements.ranges().for_each(|range| unanswered.insert(range));
        unanswered
    }

    /// What is to be sent on `stream`: None at its end.
    pub(super) fn poll_send(&mut self, stream: u64, sender: &Waker) -> Poll<Option<node::StreamSettle>> {
        if stream != self.stream {
            return Poll::Ready(None);
        }
        if !self.is_suspended
            && let Some(settle) = self.settlements.next_to_send()
        {
            return Poll::Ready(Some(settle));
        }
        if self.is_over() {
            return Poll::Ready(None);
        }
        self.sender = Some(sender.clone());
        Poll::Pending
    }

    /// What is to be said last on `stream`, once everything is settled that is to be: what somebody has looked at.
    pub(super) fn take_leave(&mut self, stream: u64) -> Option<node::Leave> {
        let is_over = stream == self.stream && self.is_over();
        if !is_over || mem::replace(&mut self.has_left, true) {
            return None;
        }
        let mut seen = self.held.clone();
        seen.subtract(&self.unseen);
        Some(node::Leave { seen: seen.ranges() })
    }

    /// Whom to wake when there is news besides batches.
    pub(super) fn take_reader(&mut self) -> Option<Waker> {
        self.reader.take()
    }

    /// Takes what a node sent. Returns whom to tell what and whom to wake.
    pub(super) fn receive(&mut self, response: node::ConsumeResponse) -> (Answers, [Option<Waker>; 2]) {
        let mut answers = Answers::default();
        if let Some(subscribed) = &response.subscribed {
            self.consumer_id = subscribed.consumer_id;
        }
        if let Some(subscribed) = response.subscribed.filter(|_| self.is_suspended) {
            let resumed = Resumed {
                asked: mem::take(&mut self.asked),
                held: Held::of(&subscribed.resumed),
                settled: Held::of(&subscribed.settled),
                given_up: Held::of(&subscribed.given_up),
            };
            answers.0 = self.resume(&resumed);
        }
        if response.group_consumers > 0 {
            self.group_consumers = response.group_consumers;
        }
        for result in response.settled {
            answers.0.extend(self.settlements.answer(result));
        }
        let mut reader = None;
        if !self.is_closed && !response.deliveries.is_empty() {
            response.deliveries.iter().for_each(|batch| self.held.insert(&offsets_of(batch)));
            self.batches.extend(response.deliveries);
            reader = self.reader.take();
        }
        (answers, [reader, self.sender_if_sendable()])
    }

    /// The stream is lost, and another one is to go on with what is held. Returns whom to wake: who sends on the stream
    /// must learn of its end. As long as it waits, the stream is only half closed, and the node keeps delivering on it.
    pub(super) fn suspend(&mut self) -> Option<Waker> {
        self.stream += 1;
        self.is_suspended = true;
        self.has_left = false;
        self.settlements.suspend();
        self.sender.take()
    }

    /// The stream is lost, and every lease on it. Returns whom to tell what and whom to wake.
    pub(super) fn lose(&mut self, cause: &Cause) -> (Answers, Option<Waker>) {
        self.stream += 1;
        self.batches.clear();
        self.held = Held::default();
        self.unseen = Held::default();
        (Answers(self.settlements.lose(cause)), self.sender.take())
    }

    /// Another stream goes on with what is held there. Everything else is delivered again, to whomever, or done with.
    fn resume(&mut self, resumed: &Resumed) -> Vec<Told> {
        self.is_suspended = false;
        let told = self.settlements.resume(resumed);
        self.held.retain(&resumed.held);
        for batch in mem::take(&mut self.batches) {
            let offsets = offsets_of(&batch);
            if self.held.has_all(&offsets) {
                self.batches.push_back(batch);
                continue;
            }
            // A batch is read from its first message on: what is left of a broken one goes back.
            for part in self.held.split(&offsets).0 {
                self.held.remove(&part);
                let at_once = Settle::Nack { delay: Some(Duration::ZERO) };
                drop(self.settlements.add(at_once, Offset::new(part.first), part.count));
            }
        }
        told
    }

    /// There will be no more messages. Whoever has closed it need not be told.
    pub(super) fn fail(&mut self, error: ConsumeError) -> Option<Waker> {
        self.error = Some(error).filter(|_| !self.is_closed);
        self.reader.take()
    }

    /// Takes no more. `rest` is what is left of the batch that messages were taken from one by one.
    pub(super) fn close(&mut self, rest: Option<node::OffsetRange>) -> Option<Waker> {
        self.is_closed = true;
        let unseen = self.batches.drain(..).map(|batch| offsets_of(&batch)).chain(rest);
        unseen.for_each(|range| self.unseen.insert(&range));
        self.sender.take()
    }

    /// It was closed, and nothing that was to be settled waits for its answer.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed && self.settlements.is_idle()
    }

    /// It is over, and there is no stream that could tell the node.
    pub(super) fn is_over_between_streams(&self) -> bool {
        self.is_over() && self.is_suspended
    }

    /// Ending the stream would cause no message to be delivered again.
    pub(super) fn holds_nothing(&self) -> bool {
        self.held.is_empty() && self.settlements.is_idle()
    }

    fn sender_if_sendable(&mut self) -> Option<Waker> {
        let may_end = self.is_over();
        let may_send = !self.is_suspended && self.settlements.is_sendable();
        if may_end || may_send { self.sender.take() } else { None }
    }
}

/// Why what is not held cannot be settled.
pub(super) fn lease_lost() -> Cause {
    let sentence = "it is not held any more: it was settled, or lost with the stream it came on";
    Cause::new(Code::Aborted, Reason::LeaseLost, sentence)
}

fn offsets_of(batch: &node::DeliveryBatch) -> node::OffsetRange {
    node::OffsetRange { first: batch.first_offset, count: batch.count }
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

    fn first_of_next(inbox: &mut Inbox) -> Option<u64> {
        match inbox.poll_batch(Waker::noop()) {
            Poll::Ready(Some(Ok(batch))) => Some(batch.first_offset),
            _ => None,
        }
    }

    #[tokio::test]
    async fn leases_end_with_their_stream_for_good() {
        let mut inbox = Inbox::default();
        inbox.begin_stream();
        inbox.receive(delivery(0, 10)).0.publish();
        assert_eq!(first_of_next(&mut inbox), Some(0));
        inbox.receive(delivery(10, 10)).0.publish();
        inbox.lose(&lost()).0.publish();
        assert_eq!(first_of_next(&mut inbox), None, "what was not taken is delivered again");
        let (settled, _) = inbox.settle(Settle::Ack, Offset::ZERO, 1);
        assert!(matches!(settled.await, Err(SettleError::LeaseLost(_))));
    }

    #[tokio::test]
    async fn what_is_resumed_goes_on_as_if_nothing_had_happened() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.begin_stream().1, None);
        let subscribed = Some(node::Subscribed { consumer_id: 7, ..Default::default() });
        let first = node::ConsumeResponse { subscribed, group_consumers: 2, ..Default::default() };
        inbox.receive(first).0.publish();
        for first in [0, 10, 20] {
            inbox.receive(delivery(first, 10)).0.publish();
        }
        assert_eq!(first_of_next(&mut inbox), Some(0));
        drop(inbox.suspend());
        let (stream, resume) = inbox.begin_stream();
        let held = vec![node::OffsetRange { first: 0, count: 30 }];
        assert_eq!(resume, Some(node::Resume { held, group_consumers: 2, consumer_id: 7 }));
        let (acked, _) = inbox.settle(Settle::Ack, Offset::ZERO, 1);
        assert!(inbox.poll_send(stream, Waker::noop()).is_pending(), "the node has not said what goes on");

        // Of the second batch only a part goes on.
        let resumed =
            vec![node::OffsetRange { first: 0, count: 15 }, node::OffsetRange { first: 20, count: 10 }];
        let subscribed = Some(node::Subscribed { resumed, ..Default::default() });
        inbox.receive(node::ConsumeResponse { subscribed, ..Default::default() }).0.publish();
        assert_eq!(first_of_next(&mut inbox), Some(20));
        let mut sent = Vec::new();
        while let Poll::Ready(Some(settle)) = inbox.poll_send(stream, Waker::noop()) {
            let settled = vec![node::SettleResult { settle_id: settle.settle_id, failures: Vec::new() }];
            inbox.receive(node::ConsumeResponse { settled, ..Default::default() }).0.publish();
            sent.push(settle);
        }
        assert_eq!(sent[0].acks, [node::OffsetRange { first: 0, count: 1 }]);
        let nacked = sent.iter().flat_map(|settle| &settle.nacks).filter_map(|nack| nack.offsets);
        assert_eq!(nacked.collect::<Vec<_>>(), [node::OffsetRange { first: 10, count: 5 }]);
        acked.await.unwrap();
    }

    #[test]
    fn who_sends_on_a_lost_stream_learns_of_its_end() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        assert!(inbox.poll_send(stream, Waker::noop()).is_pending());
        assert!(inbox.suspend().is_some(), "nobody else would wake it");
        assert!(matches!(inbox.poll_send(stream, Waker::noop()), Poll::Ready(None)));
    }

    #[test]
    fn a_closed_consumer_sends_its_acks_before_the_end() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        inbox.receive(delivery(0, 1)).0.publish();
        let (_settled, _) = inbox.settle(Settle::Ack, Offset::ZERO, 1);
        inbox.close(None);
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
    fn a_closed_consumer_says_what_somebody_has_looked_at() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        for first in [0, 10, 20] {
            inbox.receive(delivery(first, 10)).0.publish();
        }
        assert_eq!(first_of_next(&mut inbox), Some(0));
        assert_eq!(first_of_next(&mut inbox), Some(10));
        let (_settled, _) = inbox.settle(Settle::Ack, Offset::ZERO, 4);
        assert_eq!(inbox.take_leave(stream), None, "it goes on");
        inbox.close(Some(node::OffsetRange { first: 13, count: 7 }));
        inbox.receive(delivery(30, 10)).0.publish();
        let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        assert_eq!(inbox.take_leave(stream), None, "its acks come first");
        let settled = vec![node::SettleResult { settle_id: sent.settle_id, failures: Vec::new() }];
        inbox.receive(node::ConsumeResponse { settled, ..Default::default() }).0.publish();
        // Of the first batch what is not acked, and three of the second.
        let seen = vec![node::OffsetRange { first: 4, count: 9 }];
        assert_eq!(inbox.take_leave(stream), Some(node::Leave { seen }));
        assert_eq!(inbox.take_leave(stream), None, "once");
    }

    #[tokio::test]
    async fn what_is_given_back_may_come_again_before_the_answer() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        inbox.receive(delivery(0, 1)).0.publish();
        let (given_back, _) = inbox.settle(Settle::Nack { delay: None }, Offset::ZERO, 1);
        let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        inbox.receive(delivery(0, 1)).0.publish();
        let settled = vec![node::SettleResult { settle_id: sent.settle_id, failures: Vec::new() }];
        inbox.receive(node::ConsumeResponse { settled, ..Default::default() }).0.publish();
        given_back.await.unwrap();
        inbox.settle(Settle::Ack, Offset::ZERO, 1);
        let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        assert_eq!(sent.acks, [node::OffsetRange { first: 0, count: 1 }]);
    }

    #[tokio::test]
    async fn a_refused_ack_leaves_nothing_behind_and_takes_nothing_along() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        for comes_again in [false, true] {
            inbox.receive(delivery(0, 1)).0.publish();
            let (acked, _) = inbox.settle(Settle::Ack, Offset::ZERO, 1);
            let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else {
                panic!("nothing sent")
            };
            if comes_again {
                inbox.receive(delivery(0, 1)).0.publish();
            }
            let offsets = Some(node::OffsetRange { first: 0, count: 1 });
            let failure =
                node::SettleFailure { offsets, reason: Reason::LeaseLost.into(), ..Default::default() };
            let settled = vec![node::SettleResult { settle_id: sent.settle_id, failures: vec![failure] }];
            inbox.receive(node::ConsumeResponse { settled, ..Default::default() }).0.publish();
            assert!(matches!(acked.await, Err(SettleError::LeaseLost(_))));
            assert_eq!(inbox.holds_nothing(), !comes_again);
        }
    }

    #[tokio::test]
    async fn two_that_settle_the_same_share_an_answer() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        inbox.receive(delivery(0, 1)).0.publish();
        let both = [(); 2].map(|()| inbox.settle(Settle::Ack, Offset::ZERO, 1).0);
        let Poll::Ready(Some(sent)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        let settled = vec![node::SettleResult { settle_id: sent.settle_id, failures: Vec::new() }];
        inbox.receive(node::ConsumeResponse { settled, ..Default::default() }).0.publish();
        for one in both {
            one.await.unwrap();
        }
        let (late, _) = inbox.settle(Settle::Ack, Offset::ZERO, 1);
        assert!(matches!(late.await, Err(SettleError::LeaseLost(_))));
    }

    #[test]
    fn what_no_node_has_answered_is_resumed_to_be_settled_again() {
        let mut inbox = Inbox::default();
        let (stream, _) = inbox.begin_stream();
        inbox.receive(delivery(0, 3)).0.publish();
        drop(inbox.settle(Settle::Ack, Offset::ZERO, 1));
        assert!(inbox.poll_send(stream, Waker::noop()).is_ready());
        drop(inbox.settle(Settle::Nack { delay: None }, Offset::new(1), 1));
        drop(inbox.suspend());
        let (stream, resume) = inbox.begin_stream();
        let resumed = resume.unwrap().held;
        assert_eq!(resumed, [node::OffsetRange { first: 0, count: 3 }]);
        let subscribed = Some(node::Subscribed { resumed, ..Default::default() });
        inbox.receive(node::ConsumeResponse { subscribed, ..Default::default() }).0.publish();
        let Poll::Ready(Some(again)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        assert_eq!(again.acks, [node::OffsetRange { first: 0, count: 1 }]);
        let Poll::Ready(Some(next)) = inbox.poll_send(stream, Waker::noop()) else { panic!("nothing sent") };
        assert_eq!(next.nacks[0].offsets, Some(node::OffsetRange { first: 1, count: 1 }));
        assert!(!inbox.holds_nothing(), "the third message is neither");
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
