//! One scenario for each promise.

use skein_proto::limits::GROUP_CONSUMERS_MAX;

use super::*;

pub(super) const PLENTY: Credit = Credit { messages: 1_000, bytes: 1 << 30 };
pub(super) const ALL_KEPT: TestStored =
    TestStored { first: 0, given_up: OffsetRange::new(Offset::ZERO, 0), special: false };

/// A group without messages.
pub(super) const NEW: GroupStart = GroupStart {
    rules: RULES,
    ready: OffsetRuns::new(),
    fresh_from: Offset::ZERO,
    next_offset: Offset::ZERO,
    held_back_until_ms: 0,
    seek_count: 0,
};

/// When both clocks say the same.
pub(super) fn at(ms: u64) -> Now {
    Now { wall_ms: ms, steady_ms: ms }
}

pub(super) fn id(raw: u64) -> ConsumerId {
    ConsumerId::new(raw)
}

/// A group 1 with this many fresh messages.
fn dispatcher(messages: u64) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    let next_offset = Offset::new(messages);
    let ready = OffsetRuns::new();
    let fresh_from = Offset::ZERO;
    let start = GroupStart { ready, fresh_from, next_offset, ..NEW };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    dispatcher
}

/// The same, of a leader that has just taken over: held back until 2000.
fn taken_over(messages: u64) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    let start = GroupStart {
        rules: RULES,
        ready: OffsetRuns::new(),
        fresh_from: Offset::ZERO,
        next_offset: Offset::new(messages),
        held_back_until_ms: 2_000,
        ..NEW
    };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    dispatcher
}

pub(super) fn resume(
    dispatcher: &mut Dispatcher,
    consumer: u64,
    held: &[OffsetRange],
    now_ms: u64,
) -> Vec<OffsetRange> {
    let claim = Claim { held: held.to_vec(), group_consumers: 0, before: id(consumer + 100) };
    dispatcher.resume(id(consumer), &claim, at(now_ms), now_ms + 250, &ALL_KEPT).held.iter().collect()
}

#[test]
fn a_new_leader_waits_for_those_who_hold_messages() {
    let mut dispatcher = taken_over(20);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 100)), []);
    assert_eq!(dispatcher.due_in_ms(at(0)), Some(2_000));

    // One comes back with what it was delivered out of the middle; the other is waited for a little longer.
    assert_eq!(
        resume(&mut dispatcher, 1, &[range_of(3, 9), range_of(18, 9)], 100),
        [range_of(3, 9), range_of(18, 2)]
    );
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    assert_eq!(resume(&mut dispatcher, 2, &[range_of(0, 5)], 200), [range_of(0, 3)], "the rest is held");
    assert_eq!(brief(&poll(&mut dispatcher, 349)), []);
    assert_eq!(brief(&poll(&mut dispatcher, 350)), [(1, 12, 3, 1), (2, 15, 3, 1)]);
    assert_eq!(
        dispatcher.ack(id(1), range_of(3, 9)),
        [(range_of(3, 2), Ok(1)), (range_of(5, 5), Ok(1)), (range_of(10, 2), Ok(1))]
    );
}

#[test]
fn a_new_leader_waits_for_as_many_as_there_were_and_no_longer() {
    let mut dispatcher = taken_over(6);
    let comes_back = |dispatcher: &mut Dispatcher, consumer: u64, group_consumers: u32| {
        dispatcher.add_consumer(key(1), id(consumer), PLENTY, 0).unwrap();
        let claim = Claim { held: vec![range_of(consumer, 1)], group_consumers, before: id(consumer + 100) };
        dispatcher.resume(id(consumer), &claim, at(100), 350, &ALL_KEPT);
        dispatcher.expected(key(1))
    };
    assert_eq!(comes_back(&mut dispatcher, 1, 3), 3, "two may still come");
    dispatcher.remove_consumer(id(1));
    // It has not heard of as many as the others.
    assert_eq!(comes_back(&mut dispatcher, 2, 2), 3);
    assert_eq!(comes_back(&mut dispatcher, 3, 3), 3);
    dispatcher.add_consumer(key(1), id(9), PLENTY, 0).unwrap();
    let first_time = Claim { held: Vec::new(), group_consumers: 0, before: ConsumerId::NOBODY };
    dispatcher.resume(id(9), &first_time, at(100), 350, &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 100)), [], "who comes for the first time is nobody of those");
    assert_eq!(comes_back(&mut dispatcher, 4, 3), 3);
    let delivered: u32 = poll(&mut dispatcher, 100).iter().map(|delivery| delivery.count).sum();
    assert_eq!(delivered, 2, "what nobody holds, and nobody has given back");
    assert_eq!((dispatcher.take_released(), dispatcher.expected(key(1))), (vec![key(1)], 0));
}

#[test]
fn a_consumer_that_comes_back_to_the_same_leader_takes_over_from_itself() {
    let mut dispatcher = dispatcher(6);
    for consumer in [1, 2] {
        dispatcher.add_consumer(key(1), id(consumer), Credit { messages: 3, ..PLENTY }, 0).unwrap();
    }
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 3, 1), (2, 3, 2, 1), (2, 5, 1, 1)]);
    dispatcher.add_consumer(key(1), id(3), PLENTY, 0).unwrap();
    let claim = Claim { held: vec![range_of(1, 3)], group_consumers: 0, before: id(1) };
    let resumed = dispatcher.resume(id(3), &claim, at(0), 250, &ALL_KEPT);
    assert_eq!(resumed.held.iter().collect::<Vec<_>>(), [range_of(1, 2)], "the rest is held by another one");
    assert_eq!(dispatcher.ack(id(1), range_of(1, 1)), [(range_of(1, 1), Err(Refusal::LeaseLost))]);
    // What it did not claim comes again, in the same attempt.
    assert!(brief(&poll(&mut dispatcher, 0)).contains(&(3, 0, 1, 1)));
}

#[test]
fn who_comes_back_twice_since_it_heard_nothing_counts_once_and_keeps_what_it_holds() {
    let mut dispatcher = taken_over(6);
    let claim = Claim { held: vec![range_of(0, 2)], group_consumers: 2, before: id(100) };
    for consumer in [1, 2] {
        dispatcher.add_consumer(key(1), id(consumer), PLENTY, 0).unwrap();
        let resumed = dispatcher.resume(id(consumer), &claim, at(0), 250, &ALL_KEPT);
        assert_eq!(resumed.held.iter().collect::<Vec<_>>(), [range_of(0, 2)]);
    }
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [], "another one may still come");
    assert_eq!(dispatcher.counts(key(1)).consumers, 1);
}

#[test]
fn what_was_settled_without_an_answer_is_claimed_besides_what_is_held() {
    let mut dispatcher = taken_over(20);
    let credit = Credit { messages: 1, ..PLENTY };
    dispatcher.add_consumer(key(1), id(1), credit, 0).unwrap();
    assert_eq!(resume(&mut dispatcher, 1, &[range_of(5, 2)], 0), [range_of(5, 2)]);
    assert_eq!(resume(&mut dispatcher, 1, &[range_of(7, 20)], 0), [range_of(7, 6)], "but not all there is");
}

#[test]
fn what_is_resumed_has_a_bound_and_the_rest_is_delivered() {
    let mut dispatcher = taken_over(20);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 1, ..PLENTY }, 0).unwrap();
    let claimed = [range_of(2, 3), range_of(5, u64::from(u32::MAX))];
    assert_eq!(resume(&mut dispatcher, 1, &claimed, 0), [range_of(2, 8)]);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    let delivered: u32 = poll(&mut dispatcher, 250).iter().map(|delivery| delivery.count).sum();
    assert_eq!(delivered, 12, "nothing is left behind");
}

#[test]
fn what_is_resumed_and_not_kept_takes_nothing_else_along() {
    let mut dispatcher = taken_over(10);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    // Purged below 7, and the event has not come yet.
    let sizes = TestStored { first: 7, ..ALL_KEPT };
    let claim = Claim { held: vec![range_of(2, 8)], group_consumers: 0, before: ConsumerId::new(u64::MAX) };
    let resumed = dispatcher.resume(id(1), &claim, at(0), 250, &sizes);
    assert_eq!(resumed.held.iter().collect::<Vec<_>>(), [range_of(7, 3)]);
    assert_eq!(dispatcher.counts(key(1)).leased, 3);
}

#[test]
fn who_leaves_gives_back_what_it_has_not_seen_as_if_it_had_never_come() {
    let mut dispatcher = dispatcher(10);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 5, 1), (1, 5, 5, 1)]);
    assert_eq!(dispatcher.ack(id(1), range_of(0, 2)), [(range_of(0, 2), Ok(1))]);
    dispatcher.leave(id(1), &[range_of(0, 4)].into_iter().collect(), &ALL_KEPT);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 4, 1, 1), (2, 5, 5, 1)]);
    let returned = dispatcher.remove_consumer(id(1));
    assert_eq!(returned, [Returned { key: key(1), range: range_of(2, 2), attempt: 1 }]);
    // And once more, when it has come before.
    dispatcher.handle_returned(key(1), range_of(2, 2), 1, 0, &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 2, 2, 2)]);
    dispatcher.leave(id(2), &[].into_iter().collect(), &ALL_KEPT);
    dispatcher.add_consumer(key(1), id(3), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(3, 2, 2, 2), (3, 4, 1, 1), (3, 5, 5, 1)]);
    assert!(dispatcher.remove_consumer(id(2)).is_empty(), "it holds nothing");
}

#[test]
fn who_leaves_gives_back_nothing_that_was_given_up_meanwhile() {
    let mut dispatcher = dispatcher(10);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 5, 1), (1, 5, 5, 1)]);
    // They made room for others, and are still to be moved to another queue.
    let dropped = TestStored { given_up: range_of(0, 7), ..ALL_KEPT };
    dispatcher.leave(id(1), &[].into_iter().collect(), &dropped);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 7, 3, 1)]);
    assert_eq!(dispatcher.counts(key(1)).leased, 3);
}

#[test]
fn when_nobody_comes_back_all_of_it_is_delivered_in_the_end() {
    let mut dispatcher = taken_over(4);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    dispatcher.handle_appended(QUEUE, Offset::new(5), &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 1_999)), []);
    assert_eq!(brief(&poll(&mut dispatcher, 2_000)), [(1, 0, 5, 1)]);
}

#[test]
fn what_is_settled_or_returned_later_or_not_there_cannot_be_resumed() {
    let mut ready = OffsetRuns::new();
    ready.insert(range_of(0, 1), Ready { attempts: 2, not_before_ms: 0 });
    ready.insert(range_of(1, 1), Ready { attempts: 1, not_before_ms: 5_000 });
    let mut dispatcher = Dispatcher::new();
    let start = GroupStart {
        rules: RULES,
        ready,
        fresh_from: Offset::new(4),
        next_offset: Offset::new(6),
        held_back_until_ms: 2_000,
        ..NEW
    };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    let claimed = [range_of(0, u64::from(u32::MAX))];
    assert_eq!(resume(&mut dispatcher, 1, &claimed, 0), [range_of(0, 1), range_of(4, 2)]);
    assert_eq!(dispatcher.nack(id(1), range_of(0, 1)), [(range_of(0, 1), Ok(3))]);
}

pub(super) fn poll(dispatcher: &mut Dispatcher, now_ms: u64) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    dispatcher.poll(at(now_ms), &ALL_KEPT, &mut deliveries);
    deliveries
}

/// Consumer, first offset, count and attempt of each.
pub(super) fn brief(deliveries: &[Delivery]) -> Vec<(u64, u64, u32, u32)> {
    deliveries.iter().map(|d| (d.consumer.get(), d.first.get(), d.count, d.attempt)).collect()
}

#[test]
fn consumers_share_what_there_is() {
    let mut dispatcher = dispatcher(3);
    for consumer in 1..=3 {
        dispatcher.add_consumer(key(1), id(consumer), PLENTY, 0).unwrap();
    }
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 1, 1), (2, 1, 1, 1), (3, 2, 1, 1)]);
    dispatcher.handle_appended(QUEUE, Offset::new(20), &ALL_KEPT);
    // Six for each, but no more than a block of five at a time.
    let expected = [(1, 3, 2, 1), (2, 5, 5, 1), (3, 10, 5, 1), (1, 15, 5, 1)];
    assert_eq!(brief(&poll(&mut dispatcher, 0)), expected);
}

#[test]
fn a_consumer_alone_gets_whole_blocks() {
    let mut dispatcher = dispatcher(12);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 5, 1), (1, 5, 5, 1), (1, 10, 2, 1)]);
}

#[test]
fn what_came_back_goes_first_and_not_too_early() {
    let mut dispatcher = dispatcher(4);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 3, bytes: 1_000 }, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 3, 1)]);
    assert_eq!(dispatcher.nack(id(1), range_of(0, 2)), [(range_of(0, 2), Ok(1))]);
    dispatcher.handle_returned(key(1), range_of(1, 1), 1, 0, &ALL_KEPT);
    dispatcher.handle_returned(key(1), range_of(0, 1), 1, 40, &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 1)), [(1, 1, 1, 2), (1, 3, 1, 1)]);
    assert_eq!(dispatcher.due_in_ms(at(0)), Some(40));
    dispatcher.ack(id(1), range_of(3, 1));
    assert_eq!(poll(&mut dispatcher, 39), []);
    assert_eq!(brief(&poll(&mut dispatcher, 40)), [(1, 0, 1, 2)]);
}

#[test]
fn refusals_say_why() {
    let mut dispatcher = dispatcher(20);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 4, bytes: 1_000 }, 0).unwrap();
    poll(&mut dispatcher, 0);
    dispatcher.ack(id(1), range_of(1, 1));
    let expected = [
        (range_of(0, 1), Ok(1)),
        (range_of(1, 1), Err(Refusal::LeaseLost)),
        (range_of(2, 2), Ok(1)),
        (range_of(4, 16), Err(Refusal::NotDelivered)),
    ];
    assert_eq!(dispatcher.ack(id(1), range_of(0, 20)), expected);
    assert_eq!(dispatcher.ack(id(1), range_of(0, 0)), []);
    assert_eq!(dispatcher.ack(id(9), range_of(0, 2)), [(range_of(0, 2), Err(Refusal::LeaseLost))]);
}

#[test]
fn leases_end_and_can_be_extended() {
    let mut dispatcher = dispatcher(4);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    poll(&mut dispatcher, 0);
    assert_eq!(dispatcher.extend(id(1), range_of(1, 2), 80), [(range_of(1, 2), Ok(1))]);
    assert_eq!(dispatcher.expire(49), []);
    let attempt = 1;
    let expected = [
        Returned { key: key(1), range: range_of(0, 1), attempt },
        Returned { key: key(1), range: range_of(3, 1), attempt },
    ];
    assert_eq!(dispatcher.expire(50), expected);
    assert_eq!(dispatcher.due_in_ms(at(0)), Some(80));
    assert_eq!(dispatcher.ack(id(1), range_of(0, 1)), [(range_of(0, 1), Err(Refusal::LeaseLost))]);
    assert_eq!(dispatcher.expire(80), [Returned { key: key(1), range: range_of(1, 2), attempt }]);
    assert_eq!(dispatcher.due_in_ms(at(0)), None);
}

#[test]
fn a_detached_consumer_keeps_its_leases_until_the_last_ends() {
    let mut dispatcher = dispatcher(4);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 2, bytes: 1_000 }, 0).unwrap();
    poll(&mut dispatcher, 0);
    dispatcher.detach(id(1));
    assert_eq!(dispatcher.counts(key(1)), GroupCounts { leased: 2, consumers: 0, ready: 2, delayed: 0 });
    assert_eq!(dispatcher.ack(id(1), range_of(0, 1)), [(range_of(0, 1), Ok(1))]);
    assert_eq!(poll(&mut dispatcher, 1), []);
    assert_eq!(dispatcher.expire(50).len(), 1);
    assert_eq!(dispatcher.held(id(1)), None);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    dispatcher.detach(id(2));
    assert_eq!(dispatcher.held(id(2)), None, "it held nothing to wait for");
}

#[test]
fn a_consumer_belongs_to_its_group_until_it_is_forgotten() {
    let mut dispatcher = dispatcher(4);
    assert_eq!(dispatcher.group_of(id(1)), None);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    assert_eq!(dispatcher.group_of(id(1)), Some(key(1)));
    poll(&mut dispatcher, 0);
    dispatcher.detach(id(1));
    assert_eq!(dispatcher.group_of(id(1)), Some(key(1)), "it still holds leases");
    dispatcher.ack(id(1), range_of(0, 4));
    assert_eq!(dispatcher.group_of(id(1)), None);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    dispatcher.remove_group(key(1));
    assert_eq!(dispatcher.group_of(id(2)), None);
}

#[test]
fn a_message_larger_than_the_credit_goes_to_who_holds_nothing() {
    let mut dispatcher = dispatcher(1);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 9, bytes: 5 }, 0).unwrap();
    // Message 0 has one byte, message 1 has eight.
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 1, 1)]);
    dispatcher.handle_appended(QUEUE, Offset::new(2), &ALL_KEPT);
    assert_eq!(poll(&mut dispatcher, 0), []);
    dispatcher.add_consumer(key(1), id(2), Credit { messages: 9, bytes: 0 }, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 1, 1, 1)]);
}

#[test]
fn a_consumer_that_leaves_gives_back_what_it_held() {
    let mut dispatcher = dispatcher(12);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    poll(&mut dispatcher, 0);
    dispatcher.ack(id(1), range_of(2, 1));
    let returned = dispatcher.remove_consumer(id(1));
    let expected = [range_of(0, 2), range_of(3, 9)].map(|range| Returned { key: key(1), range, attempt: 1 });
    assert_eq!(returned, expected);
    assert_eq!(dispatcher.due_in_ms(at(0)), None);
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    assert_eq!(poll(&mut dispatcher, 0), [], "the core has not taken them back yet");
}

#[test]
fn a_held_message_is_not_delivered_again_whatever_the_core_says() {
    let mut dispatcher = dispatcher(3);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    poll(&mut dispatcher, 0);
    dispatcher.handle_returned(key(1), range_of(0, 9), 7, 0, &ALL_KEPT);
    assert_eq!(poll(&mut dispatcher, 0), []);
    dispatcher.handle_appended(QUEUE, Offset::new(4), &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 3, 1, 1)]);
}

#[test]
fn a_forgotten_group_takes_its_consumers_along() {
    let mut dispatcher = dispatcher(3);
    let full = (0..GROUP_CONSUMERS_MAX as u64).map(|raw| dispatcher.add_consumer(key(1), id(raw), PLENTY, 0));
    assert!(full.collect::<Vec<_>>().iter().all(Result::is_ok));
    assert_eq!(dispatcher.add_consumer(key(1), id(9_999), PLENTY, 0), Err(AddConsumerError::TooMany));
    poll(&mut dispatcher, 0);
    assert_eq!(dispatcher.remove_group(key(1)).len(), GROUP_CONSUMERS_MAX);
    assert_eq!((dispatcher.due_in_ms(at(0)), dispatcher.counts(key(1))), (None, GroupCounts::default()));
    assert_eq!(dispatcher.add_consumer(key(1), id(1), PLENTY, 0), Err(AddConsumerError::NoGroup));
    assert_eq!(dispatcher.remove_group(key(1)), []);
    assert_eq!(dispatcher.ack(id(1), range_of(0, 1)), [(range_of(0, 1), Err(Refusal::LeaseLost))]);
}

/// As [`TestStored`], but the core has no message 2 and may not know the queue at all.
struct Holed {
    queue_exists: bool,
}

impl Stored for Holed {
    fn fit(&self, queue: QueueId, first: Offset, count_max: u32, bytes_max: u64) -> Option<(u32, u64)> {
        let count_max = if first.get() < 2 { count_max.min(2 - first.get() as u32) } else { count_max };
        let kept = self.queue_exists && first.get() != 2;
        kept.then(|| ALL_KEPT.fit(queue, first, count_max, bytes_max)).flatten()
    }

    fn kept_from(&self, _queue: QueueId) -> Option<Offset> {
        self.queue_exists.then_some(Offset::ZERO)
    }

    fn open_in(&self, key: GroupKey, range: OffsetRange) -> OffsetSet {
        ALL_KEPT.open_in(key, range)
    }

    fn is_ordinary(&self, _queue: QueueId) -> bool {
        true
    }

    fn visit_waiting(&self, _queue: QueueId, _from: Offset, _visit: &mut dyn FnMut(Waiting) -> bool) {}
}

#[test]
fn what_the_core_has_freed_stops_nobody() {
    let mut dispatcher = dispatcher(10);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 4, bytes: 1_000 }, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 4, 1)]);
    dispatcher.nack(id(1), range_of(0, 4));
    dispatcher.handle_returned(key(1), range_of(0, 2), 1, 0, &ALL_KEPT);
    dispatcher.handle_returned(key(1), range_of(2, 1), 1, 40, &ALL_KEPT);
    dispatcher.handle_returned(key(1), range_of(3, 1), 1, 0, &ALL_KEPT);
    let mut deliveries = Vec::new();
    dispatcher.poll(at(1), &TestStored { first: 3, ..ALL_KEPT }, &mut deliveries);
    assert_eq!(brief(&deliveries), [(1, 3, 1, 2), (1, 4, 1, 1), (1, 5, 2, 1)]);
    let left = GroupCounts { leased: 4, consumers: 1, ready: 3, delayed: 0 };
    assert_eq!(dispatcher.counts(key(1)), left);
    // The same of messages that were never delivered, up to beyond the end that is known here.
    dispatcher.ack(id(1), range_of(3, 4));
    let mut deliveries = Vec::new();
    dispatcher.poll(at(1), &TestStored { first: 12, ..ALL_KEPT }, &mut deliveries);
    assert_eq!((deliveries.len(), dispatcher.counts(key(1)).ready), (0, 0));
    dispatcher.handle_appended(QUEUE, Offset::new(14), &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 1)), [(1, 12, 2, 1)]);
}

#[test]
fn a_single_missing_message_is_skipped() {
    let mut dispatcher = dispatcher(4);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    dispatcher.add_consumer(key(1), id(2), PLENTY, 0).unwrap();
    let mut deliveries = Vec::new();
    dispatcher.poll(at(0), &Holed { queue_exists: true }, &mut deliveries);
    assert_eq!(brief(&deliveries), [(1, 0, 2, 1), (2, 3, 1, 1)]);
    // The same of a message that came back.
    dispatcher.handle_returned(key(1), range_of(2, 1), 1, 0, &ALL_KEPT);
    let mut deliveries = Vec::new();
    dispatcher.poll(at(0), &Holed { queue_exists: true }, &mut deliveries);
    assert_eq!((deliveries.len(), dispatcher.counts(key(1)).ready), (0, 0));
}

#[test]
fn without_a_queue_a_turn_ends() {
    let mut dispatcher = dispatcher(4);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    let mut deliveries = Vec::new();
    dispatcher.poll(at(0), &Holed { queue_exists: false }, &mut deliveries);
    assert_eq!((deliveries.len(), dispatcher.counts(key(1)).ready), (0, 4));
    dispatcher.handle_appended(QUEUE, Offset::new(5), &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 5, 1)]);
}

#[test]
fn leases_and_holds_last_as_long_as_they_should_whatever_is_done_to_the_clock() {
    let mut dispatcher = taken_over(5);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    let poll = |dispatcher: &mut Dispatcher, wall_ms, steady_ms| {
        let mut deliveries = Vec::new();
        dispatcher.poll(Now { wall_ms, steady_ms }, &ALL_KEPT, &mut deliveries);
        deliveries.len()
    };
    assert_eq!(poll(&mut dispatcher, 1 << 40, 1_999), 0, "set forward by years");
    assert_eq!(poll(&mut dispatcher, 0, 2_000), 1, "set back");
    assert_eq!(dispatcher.due_in_ms(Now { wall_ms: 1 << 40, steady_ms: 2_010 }), Some(40));
    assert_eq!(dispatcher.expire(2_049), []);
    assert_eq!(dispatcher.expire(2_050).len(), 1);
}
