//! Order by key, one scenario for each promise. Offsets 0 and 1 have no key, 2 and 3 the first one, and so on up to 6
//! and 7, which have the third; then it begins anew.

use super::{
    scenarios::{ALL_KEPT, NEW, PLENTY, brief, id, poll, resume},
    *,
};
use crate::dispatch::keys::LOOKAHEAD_MESSAGES_MAX;

const COUNT: u64 = LOOKAHEAD_MESSAGES_MAX + 5_000;
const BY_KEY: Rules = Rules { by_key: true, ..RULES };

/// Consumers 1 and 2 of a group 1 of so many fresh messages.
fn dispatcher(next_offset: u64) -> Dispatcher {
    let mut dispatcher = Dispatcher::new();
    let start = GroupStart { next_offset: Offset::new(next_offset), rules: BY_KEY, ..NEW };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    for consumer in 1..=2 {
        dispatcher.add_consumer(key(1), id(consumer), PLENTY, 0).unwrap();
    }
    dispatcher
}

fn offsets(delivered: &[Delivery]) -> Vec<u64> {
    delivered
        .iter()
        .flat_map(|delivery| (0..delivery.count).map(|n| delivery.first.get() + u64::from(n)))
        .collect()
}

#[test]
fn of_each_key_one_message_is_out_at_a_time() {
    let mut dispatcher = dispatcher(12);
    let delivered = poll(&mut dispatcher, 0);
    assert_eq!(offsets(&delivered), [0, 1, 2, 4, 6, 8, 9]);
    let holder = delivered.iter().find(|delivery| delivery.first.get() == 4).unwrap().consumer;
    dispatcher.ack(holder, range_of(4, 1));
    assert_eq!(offsets(&poll(&mut dispatcher, 0)), [5]);
}

#[test]
fn what_lies_side_by_side_goes_to_one_consumer_up_to_its_share() {
    let mut dispatcher = dispatcher(16);
    let delivered = poll(&mut dispatcher, 0);
    assert_eq!(offsets(&delivered), [0, 1, 2, 4, 6, 8, 9]);
    let of = |offset| {
        delivered.iter().find(|delivery| delivery.first.get() <= offset && offset < delivery.end().get())
    };
    let consumer = |offset: u64| of(offset).unwrap().consumer;
    assert_eq!((consumer(0), consumer(1)), (consumer(2), consumer(2)));
    assert_ne!(consumer(2), consumer(4), "another one's turn");
}

#[test]
fn what_lies_behind_is_within_the_credit() {
    let mut dispatcher = Dispatcher::new();
    let [fresh_from, next_offset] = [7, 16].map(Offset::new);
    dispatcher.add_group(key(1), GroupStart { fresh_from, next_offset, rules: BY_KEY, ..NEW }, &ALL_KEPT);
    dispatcher.add_consumer(key(1), id(1), Credit { messages: 2, ..PLENTY }, 0).unwrap();
    assert_eq!(brief(&poll(&mut dispatcher, 0)), [(1, 7, 1, 1), (1, 8, 1, 1)]);
}

#[test]
fn an_ack_of_who_takes_no_more_lets_others_go_on() {
    let mut dispatcher = dispatcher(4);
    let delivered = poll(&mut dispatcher, 0);
    let holder = delivered.iter().find(|delivery| delivery.first.get() == 2).unwrap().consumer;
    dispatcher.detach(holder);
    dispatcher.ack(holder, range_of(2, 1));
    let next = poll(&mut dispatcher, 0);
    assert_eq!(offsets(&next), [3]);
    assert_ne!(next[0].consumer, holder);
}

#[test]
fn what_comes_back_is_waited_for() {
    let mut dispatcher = dispatcher(4);
    poll(&mut dispatcher, 0);
    let both = [id(1), id(2)];
    let nacked = both.map(|consumer| dispatcher.nack(consumer, range_of(2, 1)));
    assert!(nacked.concat().contains(&(range_of(2, 1), Ok(1))));
    assert!(poll(&mut dispatcher, 0).is_empty(), "it is on its way back");
    dispatcher.handle_returned(key(1), range_of(2, 1), 1, 30, &ALL_KEPT);
    assert!(poll(&mut dispatcher, 29).is_empty(), "it is held back");
    let again = poll(&mut dispatcher, 30);
    assert_eq!(
        again.iter().map(|delivery| (delivery.first.get(), delivery.attempt)).collect::<Vec<_>>(),
        [(2, 2)]
    );
    // Its consumer is gone, and it has come back too often.
    dispatcher.remove_consumer(again[0].consumer);
    assert!(poll(&mut dispatcher, 30).is_empty());
    dispatcher.handle_given_up(key(1), range_of(2, 1));
    assert_eq!(offsets(&poll(&mut dispatcher, 30)), [3]);
}

#[test]
fn a_new_leader_lets_nobody_go_on_after_what_was_not_done() {
    let mut dispatcher = Dispatcher::new();
    let start = GroupStart { next_offset: Offset::new(6), rules: BY_KEY, held_back_until_ms: 2_000, ..NEW };
    dispatcher.add_group(key(1), start, &ALL_KEPT);
    dispatcher.add_consumer(key(1), id(1), PLENTY, 0).unwrap();
    // It held the second message of one key, when it had acked the first, and the first of another.
    let resumed = resume(&mut dispatcher, 1, &[range_of(3, 1), range_of(4, 1)], 0);
    assert_eq!(resumed, [range_of(4, 1)]);
    assert_eq!(brief(&poll(&mut dispatcher, 250)), [(1, 0, 2, 1), (1, 2, 1, 1)]);
}

#[test]
fn the_order_of_keys_can_be_asked_for_later_and_be_given_up() {
    let mut dispatcher = dispatcher(8);
    assert_eq!(offsets(&poll(&mut dispatcher, 0)), [0, 1, 2, 4, 6]);
    dispatcher.change_queue(QUEUE, RULES, &ALL_KEPT);
    assert_eq!(offsets(&poll(&mut dispatcher, 0)), [3, 5, 7]);
    dispatcher.handle_appended(QUEUE, Offset::new(14), &ALL_KEPT);
    dispatcher.change_queue(QUEUE, BY_KEY, &ALL_KEPT);
    assert_eq!(offsets(&poll(&mut dispatcher, 0)), [8, 9], "the keys of all others are out");
    for consumer in 1..=2 {
        dispatcher.ack(id(consumer), range_of(2, 2));
    }
    assert_eq!(offsets(&poll(&mut dispatcher, 0)), [10]);
}

#[test]
fn a_long_backlog_is_looked_at_little_by_little() {
    let mut dispatcher = dispatcher(COUNT);
    let group = key(1);
    assert_eq!(dispatcher.counts(group).ready, COUNT);
    let mut delivered = 0;
    while let count @ 1.. =
        poll(&mut dispatcher, 0).iter().map(|delivery| u64::from(delivery.count)).sum::<u64>()
    {
        delivered += count;
        for consumer in 1..=2 {
            dispatcher.ack(id(consumer), range_of(0, COUNT));
        }
    }
    assert_eq!(delivered, COUNT);
}
