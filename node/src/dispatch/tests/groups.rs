//! Whose turn it is in a group, and what becomes of one that is moved or whose queue changes.

use super::{
    scenarios::{ALL_KEPT, NEW, PLENTY, at, brief, id, poll},
    *,
};

/// A group 1 of 20 fresh messages.
fn dispatcher(single_active: bool) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    let rules = Rules { single_active, ..RULES };
    let start = GroupStart { next_offset: Offset::new(20), rules, ..NEW };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    dispatcher
}

fn add(dispatcher: &mut Dispatcher, consumer: u64, messages: u32, priority: i32) {
    dispatcher.add_consumer(key(1), id(consumer), Credit { messages, ..PLENTY }, priority).unwrap();
}

#[test]
fn a_higher_priority_takes_all_it_can_before_the_others_get_any() {
    let mut dispatcher = dispatcher(false);
    add(&mut dispatcher, 1, 100, 0);
    add(&mut dispatcher, 2, 3, 7);
    add(&mut dispatcher, 3, 3, 7);
    let delivered = poll(&mut dispatcher, 0);
    let shares: Vec<u32> = [1, 2, 3].map(|consumer| count_for(&delivered, consumer)).into();
    assert_eq!(shares, [14, 3, 3]);
    assert!(delivered.iter().all(|delivery| delivery.consumer != id(1) || delivery.first.get() >= 6));
    // What they have room for again is theirs.
    dispatcher.ack(id(2), range_of(0, 3));
    dispatcher.handle_appended(QUEUE, Offset::new(22), &ALL_KEPT);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 20, 2, 1)]);
}

fn count_for(delivered: &[Delivery], consumer: u64) -> u32 {
    let its = delivered.iter().filter(|delivery| delivery.consumer == id(consumer));
    its.map(|delivery| delivery.count).sum()
}

#[test]
fn only_one_consumer_is_active_and_the_next_waits_for_what_it_holds() {
    let mut dispatcher = dispatcher(true);
    add(&mut dispatcher, 1, 4, 0);
    add(&mut dispatcher, 2, 100, 0);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 0, 4, 1)]);
    dispatcher.ack(id(1), range_of(0, 2));
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 4, 1, 1), (1, 5, 1, 1)]);
    // It takes no more, but keeps what it holds: the next one would overtake it.
    dispatcher.detach(id(1));
    assert_eq!(brief(&poll(&mut dispatcher, 0)), []);
    dispatcher.ack(id(1), range_of(2, 3));
    assert_eq!(brief(&poll(&mut dispatcher, 0)), []);
    dispatcher.ack(id(1), range_of(5, 1));
    assert_eq!(count_for(&poll(&mut dispatcher, 0), 2), 14);
}

#[test]
fn an_active_consumer_that_is_gone_or_outranked_is_followed() {
    let mut dispatcher = dispatcher(true);
    add(&mut dispatcher, 1, 2, 0);
    add(&mut dispatcher, 2, 2, 0);
    add(&mut dispatcher, 3, 2, 0);
    poll(&mut dispatcher, 0);
    for returned in dispatcher.remove_consumer(id(1)) {
        dispatcher.handle_returned(returned.key, returned.range, returned.attempt, 0, &ALL_KEPT);
    }
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 0, 2, 2)]);
    add(&mut dispatcher, 4, 2, 1);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), []);
    dispatcher.ack(id(2), range_of(0, 1));
    assert_eq!(brief(&poll(&mut dispatcher, 0)), []);
    assert_eq!(dispatcher.expire(u64::from(LEASE_MS)).len(), 1);
    assert_eq!(brief(&poll(&mut dispatcher, u64::from(LEASE_MS))), [(4, 2, 2, 1)]);
    // Now all of them may.
    dispatcher.change_queue(QUEUE, RULES, &ALL_KEPT);
    let delivered = poll(&mut dispatcher, u64::from(LEASE_MS));
    assert_eq!([2, 3, 4].map(|consumer| count_for(&delivered, consumer)), [2, 2, 0]);
}

#[test]
fn what_is_left_of_delayed_messages_comes_when_it_is_due() {
    let mut dispatcher = dispatcher(false);
    add(&mut dispatcher, 1, 20, 0);
    poll(&mut dispatcher, 0);
    dispatcher.nack(id(1), range_of(0, 10));
    dispatcher.handle_returned(key(1), range_of(0, 10), 1, 30, &ALL_KEPT);
    // The oldest are let go, and some in the middle wait longer.
    dispatcher.handle_purged(QUEUE, Offset::new(3));
    dispatcher.handle_returned(key(1), range_of(5, 2), 1, 40, &ALL_KEPT);
    let offsets = |delivered: &[Delivery]| -> Vec<u64> {
        let each = |delivery: &Delivery| {
            let first = delivery.first.get();
            first..first + u64::from(delivery.count)
        };
        delivered.iter().flat_map(each).collect()
    };
    assert_eq!(offsets(&poll(&mut dispatcher, 30)), [3, 4, 7, 8, 9]);
    assert_eq!(offsets(&poll(&mut dispatcher, 40)), [5, 6]);
    assert_eq!(dispatcher.counts(key(1)).delayed, 0);
}

#[test]
fn lower_priorities_have_their_share_while_they_wait() {
    let mut dispatcher = Dispatcher::new();
    let special = TestStored { special: true, ..ALL_KEPT };
    let rules = Rules { lower_percent: 25, ..RULES };
    let start = GroupStart { next_offset: Offset::new(24), rules, ..NEW };
    dispatcher.add_group(key(1), start, &special);
    add(&mut dispatcher, 1, 100, 0);
    let mut delivered = Vec::new();
    dispatcher.poll(at(1_000), &special, &mut delivered);
    let offsets = delivered.iter().flat_map(|delivery| {
        let first = delivery.first.get();
        first..first + u64::from(delivery.count)
    });
    let priorities: Vec<_> = offsets.map(|offset| special.waits(offset).priority).collect();
    // It is the one with the lowest offset; and when the highest priority is through, the next one is the highest.
    let expected = [2, 2, 2, 0, 2, 2, 2, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0];
    assert_eq!(priorities, expected);
}

#[test]
fn a_group_that_is_moved_begins_anew_without_consumers() {
    let mut dispatcher = dispatcher(false);
    add(&mut dispatcher, 1, 4, 0);
    poll(&mut dispatcher, 0);
    assert_eq!(dispatcher.remove_group(key(1)), [id(1)]);
    let start =
        GroupStart { fresh_from: Offset::new(18), next_offset: Offset::new(20), seek_count: 1, ..NEW };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    assert_eq!(dispatcher.seek_count(key(1)), 1);
    assert_eq!(dispatcher.ack(id(1), range_of(0, 4)), [(range_of(0, 4), Err(Refusal::LeaseLost))]);
    add(&mut dispatcher, 2, 4, 0);
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(2, 18, 2, 1)]);
}

#[test]
fn a_time_to_live_that_is_set_later_holds_for_what_waits() {
    let mut dispatcher = dispatcher(false);
    let special = TestStored { special: true, ..ALL_KEPT };
    assert_eq!(dispatcher.take_expired(at(1_000), &special), []);
    dispatcher.change_queue(QUEUE, RULES, &special);
    // Every fourth, from offset 3 on.
    assert_eq!(dispatcher.due_in_ms(at(0)), Some(13), "offset 1 is due");
    let expired = dispatcher.take_expired(at(46), &special);
    assert_eq!(expired, [Expired { key: key(1), range: range_of(3, 1) }]);
    // They may wait for ever after all.
    assert_eq!(dispatcher.take_expired(at(1_000), &ALL_KEPT), []);
}

#[test]
fn what_a_consumer_may_still_hold_does_not_expire() {
    let mut dispatcher = Dispatcher::new();
    let special = TestStored { special: true, ..ALL_KEPT };
    let start = GroupStart { next_offset: Offset::new(8), held_back_until_ms: 2_000, ..NEW };
    dispatcher.add_group(key(1), start, &special);
    assert_eq!(dispatcher.take_expired(at(100), &special), []);
    add(&mut dispatcher, 1, 100, 0);
    let claim = Claim { held: vec![range_of(3, 1)], group_consumers: 0, before: ConsumerId::new(u64::MAX) };
    let resumed = dispatcher.resume(id(1), &claim, at(100), 350, &special);
    assert_eq!(resumed.held.iter().collect::<Vec<_>>(), [range_of(3, 1)]);
    let expired = dispatcher.take_expired(at(2_000), &special);
    assert_eq!(expired, [Expired { key: key(1), range: range_of(7, 1) }]);
    // It comes back, and has waited too long.
    dispatcher.nack(id(1), range_of(3, 1));
    dispatcher.handle_returned(key(1), range_of(3, 1), 1, 0, &special);
    let expired = dispatcher.take_expired(at(2_000), &special);
    assert_eq!(expired, [Expired { key: key(1), range: range_of(3, 1) }]);
}
