//! The batcher against every way a stream can end.

use std::task::Wake;

use proptest::{collection, prelude::*};

use super::*;
use crate::message::Message;

const TIMEOUT: Duration = Duration::from_secs(60);

fn batcher(batch_messages: usize) -> Batcher {
    let limits = Limits {
        window_bytes: 1 << 20,
        window_messages: 100,
        batch_bytes: 64 << 10,
        batch_messages,
        message_bytes: 1 << 10,
    };
    Batcher::new(limits, TIMEOUT)
}

fn push(batcher: &mut Batcher, now: Instant) -> Confirm {
    let message = EncodableMessage::new(Message::new("body"));
    batcher.push(&message, || now).unwrap()
}

fn confirm(batcher: &mut Batcher, sequence: u64, first_offset: u64, count: u32) {
    let mut settled = Settled::default();
    let confirm = node::Confirm { sequence, first_offset, count, duplicate: false, ..Default::default() };
    batcher.confirm(&confirm, &mut settled).unwrap();
    settled.publish();
}

fn sequences(batcher: &mut Batcher) -> Vec<u64> {
    std::iter::from_fn(|| batcher.next_to_send()).map(|(sequence, _)| sequence.get()).collect()
}

fn cause(reason: Reason) -> Cause {
    Cause::new(Code::InvalidArgument, reason, "refused")
}

#[test]
fn the_first_messages_go_at_once_and_later_ones_gather() {
    let (mut batcher, now) = (batcher(100), Instant::now());
    batcher.begin_stream();
    for sequence in 1..=EAGER_BATCHES_IN_FLIGHT as u64 {
        drop(push(&mut batcher, now));
        assert_eq!(sequences(&mut batcher), [sequence]);
    }
    let gathered: Vec<_> = (0..3).map(|_| push(&mut batcher, now)).collect();
    assert_eq!(sequences(&mut batcher), [0; 0]);

    confirm(&mut batcher, 1, 0, 1);
    assert_eq!(sequences(&mut batcher), [3]);
    confirm(&mut batcher, 2, 1, 1);
    confirm(&mut batcher, 3, 10, 3);
    let offsets: Vec<_> = gathered.iter().map(|confirm| confirm.try_get().unwrap().unwrap().get()).collect();
    assert_eq!(offsets, [10, 11, 12]);
}

#[test]
fn enough_bytes_are_worth_a_batch() {
    let (mut batcher, now) = (batcher(100), Instant::now());
    batcher.limits.message_bytes = BATCH_WORTH_BYTES;
    batcher.begin_stream();
    for _ in 0..EAGER_BATCHES_IN_FLIGHT {
        drop(push(&mut batcher, now));
        batcher.next_to_send().unwrap();
    }
    let large = EncodableMessage::new(Message::new(vec![0; BATCH_WORTH_BYTES - 100]));
    drop(batcher.push(&large, || now).unwrap());
    assert!(batcher.next_to_send().is_none());
    for _ in 0..20 {
        drop(push(&mut batcher, now));
    }
    assert!(batcher.next_to_send().is_some());
}

#[test]
fn no_more_batches_are_in_flight_than_a_node_remembers() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    batcher.begin_stream();
    for _ in 0..100 {
        drop(push(&mut batcher, now));
    }
    assert_eq!(sequences(&mut batcher).len(), limits::PRODUCER_BATCHES_IN_FLIGHT_MAX);
}

#[test]
fn a_full_window_refuses_until_a_confirm() {
    let (mut batcher, now) = (batcher(10), Instant::now());
    batcher.begin_stream();
    for _ in 0..100 {
        drop(push(&mut batcher, now));
    }
    let message = EncodableMessage::new(Message::new("one more"));
    assert_eq!(batcher.push(&message, || now).unwrap_err(), Refused::Full);
    sequences(&mut batcher);
    confirm(&mut batcher, 1, 0, 10);
    assert!(batcher.push(&message, || now).is_ok());
}

#[test]
fn one_message_fits_any_window() {
    let mut batcher = batcher(10);
    batcher.limits.window_bytes = 1;
    let message = EncodableMessage::new(Message::new("larger than the window"));
    assert!(batcher.push(&message, Instant::now).is_ok());
    assert_eq!(batcher.push(&message, Instant::now).unwrap_err(), Refused::Full);
}

#[test]
fn large_messages_and_closed_producers_are_told() {
    let mut batcher = batcher(10);
    let large = EncodableMessage::new(Message::new(vec![0; 2 << 10]));
    let refused = batcher.push(&large, Instant::now).unwrap_err();
    assert!(matches!(refused, Refused::For(SendError::TooLarge { bytes_max: 1_024, .. })));
    batcher.close();
    let small = EncodableMessage::new(Message::new("body"));
    assert_eq!(batcher.push(&small, Instant::now).unwrap_err(), Refused::For(SendError::Closed));
    assert!(batcher.is_finished());
}

#[test]
fn a_new_stream_sends_the_same_batches_under_the_same_sequences() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    let (first_stream, producer_id) = batcher.begin_stream();
    for _ in 0..5 {
        drop(push(&mut batcher, now));
    }
    let sent: Vec<_> = std::iter::from_fn(|| batcher.next_to_send()).collect();
    confirm(&mut batcher, 1, 0, 1);
    confirm(&mut batcher, 2, 1, 1);

    let (second_stream, same_producer_id) = batcher.begin_stream();
    assert!(!batcher.is_current(first_stream) && batcher.is_current(second_stream));
    assert_eq!(same_producer_id, producer_id);
    let again: Vec<_> = std::iter::from_fn(|| batcher.next_to_send()).collect();
    assert_eq!(again, sent[2..]);
}

#[test]
fn repeated_confirms_are_normal_and_early_ones_are_not() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    batcher.begin_stream();
    for _ in 0..3 {
        drop(push(&mut batcher, now));
    }
    sequences(&mut batcher);
    confirm(&mut batcher, 1, 0, 1);
    confirm(&mut batcher, 1, 0, 1);
    for (sequence, count) in [(3, 1), (2, 7)] {
        let early =
            node::Confirm { sequence, first_offset: 0, count, duplicate: false, ..Default::default() };
        assert!(batcher.confirm(&early, &mut Settled::default()).is_err());
    }
}

#[test]
fn a_refused_batch_fails_alone_and_the_rest_start_over() {
    for reason in [Reason::MalformedMessage, Reason::InvalidProperty] {
        let (mut batcher, now) = (batcher(1), Instant::now());
        let (_, producer_id) = batcher.begin_stream();
        let confirms: Vec<_> = (0..3).map(|_| push(&mut batcher, now)).collect();
        sequences(&mut batcher);
        confirm(&mut batcher, 1, 0, 1);
        batcher.refuse(&cause(reason)).publish();
        assert!(matches!(confirms[1].try_get(), Some(Err(ConfirmError::NotAccepted(_)))));
        assert!(confirms[2].try_get().is_none());

        let (_, other_producer_id) = batcher.begin_stream();
        assert_ne!(other_producer_id, producer_id);
        assert_eq!(sequences(&mut batcher), [1]);
        confirm(&mut batcher, 1, 1, 1);
        assert_eq!(confirms[2].try_get(), Some(Ok(Offset::new(1))));
    }
}

#[test]
fn a_lost_or_full_queue_fails_everything_and_tells_what_may_have_been_stored() {
    for reason in [Reason::QueueNotFound, Reason::QueueFull] {
        let (mut batcher, now) = (batcher(1), Instant::now());
        batcher.begin_stream();
        let sent_before = push(&mut batcher, now);
        sequences(&mut batcher);
        batcher.begin_stream();
        let sent_once = push(&mut batcher, now);
        sequences(&mut batcher);
        let never_sent = push(&mut batcher, now);
        batcher.refuse(&cause(reason)).publish();
        assert!(matches!(sent_before.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
        assert!(matches!(sent_once.try_get(), Some(Err(ConfirmError::NotAccepted(_)))));
        assert!(matches!(never_sent.try_get(), Some(Err(ConfirmError::NotAccepted(_)))));
        assert!(batcher.take_first_failure().is_some());
        assert!(batcher.take_first_failure().is_none());
    }
}

#[test]
fn what_one_queue_of_a_topic_refuses_others_may_have() {
    for reason in [Reason::QueueFull, Reason::SequenceGap] {
        let (mut batcher, now) = (batcher(1), Instant::now());
        batcher.opened(&node::PublishOpened { is_topic: true, ..Default::default() });
        batcher.begin_stream();
        let sent = [push(&mut batcher, now), push(&mut batcher, now)];
        sequences(&mut batcher);
        let never_sent = push(&mut batcher, now);
        batcher.refuse(&cause(reason)).publish();
        for confirm in sent {
            assert!(matches!(confirm.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
        }
        assert!(!matches!(never_sent.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
    }
}

#[test]
fn what_is_not_routed_now_may_have_been_before() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    batcher.begin_stream();
    let sent_before = push(&mut batcher, now);
    sequences(&mut batcher);
    batcher.begin_stream();
    sequences(&mut batcher);
    batcher.refuse(&cause(Reason::NotRouted)).publish();
    assert!(matches!(sent_before.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
    batcher.begin_stream();
    let sent_once = push(&mut batcher, now);
    sequences(&mut batcher);
    batcher.refuse(&cause(Reason::NotRouted)).publish();
    assert!(matches!(sent_once.try_get(), Some(Err(ConfirmError::NotAccepted(_)))));
}

#[test]
fn forgotten_sequences_fail_only_what_may_have_been_stored() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    batcher.begin_stream();
    let sent_before = push(&mut batcher, now);
    sequences(&mut batcher);
    batcher.begin_stream();
    let sent_once = push(&mut batcher, now);
    sequences(&mut batcher);
    batcher.refuse(&cause(Reason::SequenceGap)).publish();
    assert!(matches!(sent_before.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
    assert!(sent_once.try_get().is_none());
    batcher.begin_stream();
    assert_eq!(sequences(&mut batcher), [1]);
}

#[test]
fn what_was_sent_times_out_as_unknown_and_the_rest_as_not_accepted() {
    let (mut batcher, now) = (batcher(1), Instant::now());
    let (_, producer_id) = batcher.begin_stream();
    let sent = push(&mut batcher, now);
    sequences(&mut batcher);
    let sent_later = push(&mut batcher, now + TIMEOUT / 2);
    sequences(&mut batcher);
    batcher.begin_stream();
    let fresh = push(&mut batcher, now + TIMEOUT / 2);

    let (settled, stream_is_over) = batcher.expire(now + TIMEOUT - Duration::from_millis(1));
    assert!(settled.is_empty() && !stream_is_over);
    let (settled, stream_is_over) = batcher.expire(now + TIMEOUT);
    settled.publish();
    assert!(stream_is_over);
    for unknown in [&sent, &sent_later] {
        assert!(matches!(unknown.try_get(), Some(Err(ConfirmError::OutcomeUnknown(_)))));
    }
    assert!(fresh.try_get().is_none());
    let (_, other_producer_id) = batcher.begin_stream();
    assert_ne!(other_producer_id, producer_id);

    let mut never_connected = batcher;
    let (settled, stream_is_over) = never_connected.expire(now + TIMEOUT * 2);
    settled.publish();
    assert!(!stream_is_over);
    assert!(matches!(fresh.try_get(), Some(Err(ConfirmError::NotAccepted(_)))));
    assert!(never_connected.window_messages_used == 0 && never_connected.window_bytes_used == 0);
}

#[test]
fn a_waiting_stream_is_woken_once_there_is_something() {
    struct Nobody;
    impl Wake for Nobody {
        fn wake(self: Arc<Self>) {}
    }
    let (mut batcher, now) = (batcher(10), Instant::now());
    batcher.begin_stream();
    batcher.wait_to_send(&Arc::new(Nobody).into());
    assert!(batcher.waker_if_sendable().is_none());
    drop(push(&mut batcher, now));
    assert!(batcher.waker_if_sendable().is_some());
    assert!(batcher.waker_if_sendable().is_none());
}

/// What may happen to a producer.
#[derive(Debug, Clone)]
enum Step {
    Push,
    Send,
    /// The node stores what has arrived up to now, and its confirms arrive.
    Confirm,
    /// The node stores what has arrived up to now, and the confirms are lost with the stream.
    LoseConfirms,
    /// The stream is lost, and everything that was on its way.
    LoseStream,
}

proptest! {
    /// A node that stores each sequence once, in order, ends up with every message once, in order.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        steps in collection::vec(
            prop_oneof![
                5 => Just(Step::Push),
                3 => Just(Step::Send),
                2 => Just(Step::Confirm),
                1 => Just(Step::LoseConfirms),
                1 => Just(Step::LoseStream),
            ],
            0..200,
        ),
        batch_messages in 1..5_usize,
    ) {
        let (mut batcher, now) = (batcher(batch_messages), Instant::now());
        batcher.begin_stream();
        let mut confirms = Vec::new();
        let mut node = Node::default();
        let calm = std::iter::repeat_n([Step::Send, Step::Confirm], 200).flatten();
        for step in steps.into_iter().chain([Step::LoseStream]).chain(calm) {
            match step {
                Step::Push => {
                    let message = EncodableMessage::new(Message::new(confirms.len().to_le_bytes().to_vec()));
                    confirms.extend(batcher.push(&message, || now));
                }
                Step::Send => node.arriving.extend(batcher.next_to_send()),
                Step::Confirm => {
                    for confirm in node.store() {
                        let mut settled = Settled::default();
                        batcher.confirm(&confirm, &mut settled).unwrap();
                        settled.publish();
                    }
                }
                Step::LoseConfirms => {
                    node.store();
                    batcher.begin_stream();
                }
                Step::LoseStream => {
                    node.arriving.clear();
                    batcher.begin_stream();
                }
            }
        }
        let expected: Vec<_> = (0..confirms.len()).collect();
        prop_assert_eq!(&node.messages, &expected);
        for (index, confirm) in confirms.iter().enumerate() {
            prop_assert_eq!(confirm.try_get(), Some(Ok(Offset::new(index as u64))));
        }
        prop_assert_eq!(batcher.window_bytes_used, 0);
    }
}

/// A queue as the schema describes it.
#[derive(Debug, Default)]
struct Node {
    arriving: VecDeque<(Sequence, Bytes)>,
    stored: Vec<node::Confirm>,
    messages: Vec<usize>,
}

impl Node {
    fn store(&mut self) -> Vec<node::Confirm> {
        let mut confirms = Vec::new();
        for (sequence, batch) in std::mem::take(&mut self.arriving) {
            let index = usize::try_from(sequence.get() - 1).unwrap();
            assert!(index <= self.stored.len(), "there is a gap before {sequence}");
            if index == self.stored.len() {
                let first_offset = self.messages.len() as u64;
                let bodies = crate::message::BatchReader::new(batch).map(|message| message.unwrap().body);
                self.messages.extend(bodies.map(|body| usize::from_le_bytes(body[..].try_into().unwrap())));
                let count = u32::try_from(self.messages.len() as u64 - first_offset).unwrap();
                self.stored.push(node::Confirm {
                    sequence: sequence.get(),
                    first_offset,
                    count,
                    duplicate: false,
                    ..Default::default()
                });
            }
            confirms.push(self.stored[index]);
        }
        confirms
    }
}
