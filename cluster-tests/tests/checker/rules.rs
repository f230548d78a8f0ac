//! Tests the checks of what queues can be told to promise: a story in which the promise is kept is not flagged, and one
//! in which it is broken is, by the right check only.

use std::{collections::BTreeSet, time::Duration};

use skein_cluster_tests::{
    checks::{Property, Verdict, judge},
    history::{
        Delivery, Disturbance, History, Moment, Outcome, Publish, Reader, Seek, Settlement, SettlementKind,
        View,
    },
    rules::{Rule, Wishes},
    stamp::Identity,
};

/// A history that is told event by event. All messages are of one producer, and lie where they are published.
struct Story {
    rule: Rule,
    history: History,
}

const fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

impl Story {
    fn of(rule: Rule) -> Self {
        let mut history = History { lease: Duration::from_secs(30), ..History::default() };
        history.rules.insert(rule.queue().to_owned(), rule);
        let graveyard = rule.dead_letter_queue().map(str::to_owned);
        history.dead_letter_queues.extend(graveyard.map(|graveyard| (rule.queue().to_owned(), graveyard)));
        let mut story = Self { rule, history };
        let reader = story.reader();
        story.history.readers.insert(reader);
        story
    }

    fn reader(&self) -> Reader {
        Reader { queue: self.rule.queue().to_owned(), group: "work".to_owned() }
    }

    fn identity(&self, number: u64) -> Identity {
        let queue = self.rule.queue().to_owned();
        Identity { queue, producer: 1, sequence: number + 1, uuid: number + 1 }
    }

    /// Published at a moment, and confirmed ten milliseconds later.
    fn publish(mut self, number: u64, at_ms: u64, wishes: Wishes) -> Self {
        let (identity, outcome) = (self.identity(number), Outcome::Ok(number));
        let (invoked, returned) = (ms(at_ms), Some(ms(at_ms + 10)));
        self.history.publishes.push(Publish { identity, wishes, invoked, returned, outcome });
        self
    }

    /// Delivered at a moment.
    fn deliver(mut self, number: u64, at_ms: u64) -> Self {
        let (reader, identity) = (self.reader(), Ok(self.identity(number)));
        let before = self.history.deliveries.iter().filter(|delivery| delivery.offset == number);
        let attempt = before.fold(1, |attempt, _| attempt + 1);
        let received = ms(at_ms);
        self.history.deliveries.push(Delivery {
            reader,
            consumer: 1,
            offset: number,
            attempt,
            identity,
            received,
        });
        self
    }

    fn settle(mut self, number: u64, at_ms: u64, kind: SettlementKind) -> Self {
        let (reader, invoked, returned) = (self.reader(), ms(at_ms), Some(ms(at_ms + 1)));
        let (consumer, outcome) = (1, Outcome::Ok(()));
        let settlement = Settlement { reader, consumer, offset: number, kind, invoked, returned, outcome };
        self.history.settlements.push(settlement);
        self
    }

    /// Delivered and acked.
    fn done(self, number: u64, at_ms: u64) -> Self {
        self.deliver(number, at_ms).settle(number, at_ms + 1, SettlementKind::Ack)
    }

    fn seek(mut self, to: u64, at_ms: u64) -> Self {
        let (reader, invoked, returned) = (self.reader(), ms(at_ms), Some(ms(at_ms + 10)));
        self.history.seeks.push(Seek { reader, to, invoked, returned, outcome: Outcome::Ok(()) });
        self
    }

    /// What two nodes show among the dead letters.
    fn given_up(mut self, numbers: &[u64]) -> Self {
        let contents: Vec<_> = (0..).zip(numbers.iter().map(|number| Ok(self.identity(*number)))).collect();
        let graveyard = self.rule.dead_letter_queue().expect("the queue gives messages up to one");
        for node_id in [1, 2] {
            let queue = graveyard.to_owned();
            self.history.views.push(View {
                node_id,
                queue,
                invoked: Moment::MAX,
                contents: contents.clone(),
            });
        }
        self
    }

    fn disturb(mut self, at_ms: u64) -> Self {
        self.history.disturbances.push(Disturbance { at: ms(at_ms), what: "a leader dies".to_owned() });
        self
    }

    #[track_caller]
    fn expect_pass(&self) {
        assert!(judge(&self.history).is_pass(), "{}", judge(&self.history));
    }

    #[track_caller]
    fn expect(&self, expected: Property) {
        match judge(&self.history) {
            Verdict::Violated(violations) => {
                let broken: BTreeSet<_> = violations.iter().map(|violation| violation.property).collect();
                assert_eq!(broken, [expected].into(), "{violations:#?}");
            }
            verdict => panic!("{expected:?} was broken, and the checks say: {verdict}"),
        }
    }
}

fn plain() -> Wishes {
    Wishes::default()
}

#[test]
fn a_message_may_come_when_it_is_due_and_no_earlier() {
    let story = || {
        let delayed = Wishes { delay: Some(ms(500)), ..plain() };
        Story::of(Rule::Timed).publish(0, 100, delayed).given_up(&[])
    };
    story().done(0, 600).expect_pass();
    story().done(0, 590).expect(Property::NotBeforeDue);
    let mut clock = story().done(0, 590);
    clock.history.clocks_set.push(ms(50));
    clock.expect_pass();
}

#[test]
fn a_message_that_nobody_took_in_time_does_not_come() {
    let story = || {
        let brief = Wishes { delay: Some(ms(500)), ttl: Some(ms(200)), ..plain() };
        Story::of(Rule::Timed).publish(0, 0, plain()).done(0, 1).publish(1, 100, brief)
    };
    story().done(1, 800).given_up(&[]).expect_pass();
    story().done(1, 3_000).given_up(&[]).expect(Property::NotAfterExpiry);
    story().disturb(1_500).done(1, 3_000).given_up(&[]).expect_pass();
    story().given_up(&[1]).expect_pass();
}

#[test]
fn what_is_given_up_is_a_dead_letter_once() {
    let failed = || {
        let story = Story::of(Rule::GivenUp).publish(0, 0, plain()).publish(1, 0, plain()).done(0, 20);
        story.deliver(1, 30).settle(1, 31, SettlementKind::Nack)
    };
    failed().given_up(&[1]).expect_pass();
    failed().given_up(&[1, 1]).expect(Property::GivenUpOnce);
    failed().given_up(&[]).expect(Property::GivenUpOnce);
    failed().given_up(&[1, 0]).expect(Property::GivenUpOnce);
    let rejected = || {
        let story = Story::of(Rule::GivenUp).publish(0, 0, plain()).deliver(0, 30);
        story.settle(0, 31, SettlementKind::Reject)
    };
    rejected().given_up(&[0]).expect_pass();
    rejected().given_up(&[]).expect(Property::GivenUpOnce);
    rejected().deliver(0, 90).given_up(&[0]).expect(Property::AckedStaysAcked);
    // It was delivered, and neither given back nor acked: who gave it up, and why?
    let taken = || Story::of(Rule::GivenUp).publish(0, 0, plain()).deliver(0, 30);
    taken().given_up(&[0]).expect(Property::GivenUpOnce);
}

#[test]
fn a_key_is_handled_in_order() {
    let story = || {
        let key = |key| Wishes { key: Some(key), ..plain() };
        let story = Story::of(Rule::Keyed).publish(0, 0, key(1)).publish(1, 0, key(2)).publish(2, 0, key(1));
        story.done(1, 20)
    };
    story().done(0, 30).done(2, 40).expect_pass();
    story().deliver(0, 30).done(2, 40).settle(0, 50, SettlementKind::Ack).expect(Property::KeysInOrder);
    story().done(2, 40).done(0, 50).expect(Property::KeysInOrder);
}

#[test]
fn what_two_publish_lies_at_one_offset() {
    // The second confirm is of nothing: there was one already.
    let story = || {
        let mut story = Story::of(Rule::Ids).publish(0, 0, plain()).publish(0, 50, plain());
        story.history.publishes[1].outcome = Outcome::Ok(1);
        story.done(0, 30)
    };
    story().expect_pass();
    let mut twice = story().done(0, 60);
    twice.history.deliveries[1].offset = 1;
    twice.history.settlements[1].offset = 1;
    twice.expect(Property::StoredOnce);
    let mut refused = story();
    refused.history.publishes[1].outcome = Outcome::Failed("no leader".to_owned());
    refused.expect_pass();
}

#[test]
fn the_most_urgent_that_waits_comes_first() {
    let story = || {
        let priority = |priority| Wishes { priority, ..plain() };
        let story = Story::of(Rule::Urgent).publish(0, 0, plain()).publish(1, 100, priority(2));
        story.publish(2, 120, priority(7)).done(0, 1_000)
    };
    story().done(2, 1_010).done(1, 1_020).expect_pass();
    story().done(1, 1_010).done(2, 1_020).expect(Property::MostUrgentFirst);
    story().disturb(900).done(1, 1_010).done(2, 1_020).expect_pass();
    // The more urgent one came while the other was on its way.
    let late = Story::of(Rule::Urgent).publish(0, 0, plain()).publish(1, 0, plain()).done(0, 30);
    late.publish(2, 30, Wishes { priority: 9, ..plain() }).done(1, 50).done(2, 60).expect_pass();
}

#[test]
fn a_group_goes_on_from_where_it_is_moved_to() {
    let story = || {
        let story = (0..4).fold(Story::of(Rule::Moved), |story, number| story.publish(number, 0, plain()));
        (0..4).fold(story, |story, number| story.done(number, 100 + number)).seek(2, 1_000)
    };
    story().done(2, 1_020).done(3, 1_030).expect_pass();
    story().done(2, 1_020).expect(Property::SeeksHonoured);
    story().expect(Property::SeeksHonoured);
    story().done(2, 1_020).done(3, 1_030).done(1, 2_500).expect(Property::SeeksHonoured);
    // What was on its way arrives, and what comes after the next move is not this one's doing.
    story().done(1, 1_200).done(2, 1_300).done(3, 1_310).expect_pass();
    let again = story().done(2, 1_020).seek(1, 5_000);
    again.done(1, 5_020).done(2, 5_030).done(3, 5_040).expect_pass();
}
