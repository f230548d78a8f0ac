//! Tests the checks: planted faults are caught, each by the right check only, and a correct queue is never flagged.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use skein_cluster_tests::{
    checks::{Property, Verdict, judge},
    history::{Delivery, Disturbance, History, Outcome, SettlementKind},
    stamp::{Garbled, Identity},
};

mod rules;
mod toy;

/// Long enough that everything happens, short enough to read.
const STEPS: u32 = 300;

/// Takes a history apart and puts a fault in. Gives back nothing where the history has no place for it.
type Plant = fn(&mut History) -> Option<()>;

/// Plants one fault in many histories; wherever there is room for it, this property and no other must be broken.
fn check_caught(expected: Property, plant: Plant) {
    let mut planted = 0;
    for seed in 0..20 {
        let mut history = toy::history(seed, STEPS);
        if plant(&mut history).is_none() {
            continue;
        }
        planted += 1;
        match judge(&history) {
            Verdict::Violated(violations) => {
                let broken: BTreeSet<_> = violations.iter().map(|violation| violation.property).collect();
                assert_eq!(broken, [expected].into(), "seed {seed}: {:#?}", violations);
                assert!(violations.iter().all(|violation| !violation.sentence.is_empty()));
            }
            verdict => panic!("seed {seed}: {expected:?} was broken, and the checks say: {verdict}"),
        }
    }
    assert!(planted >= 10, "the fault fits only {planted} of 20 histories");
}

fn check_unknown(spoil: fn(&mut History)) {
    let mut history = toy::history(1, STEPS);
    spoil(&mut history);
    assert!(matches!(judge(&history), Verdict::Unknown(_)), "{}", judge(&history));
}

/// The confirmed message in the middle of the queue, and its offset.
fn middle(history: &History) -> Option<(u64, Identity)> {
    let mut confirmed: Vec<_> = history
        .publishes
        .iter()
        .filter_map(|publish| match publish.outcome {
            Outcome::Ok(offset) => Some((offset, publish.identity.clone())),
            _ => None,
        })
        .collect();
    confirmed.sort();
    confirmed.get(confirmed.len() / 2).cloned()
}

/// A delivery long after everything else.
fn late_delivery(history: &History, offset: u64, attempt: u32, identity: Identity) -> Delivery {
    let received =
        history.deliveries.last().map_or(Duration::ZERO, |last| last.received) + Duration::from_secs(60);
    let reader = toy::reader(toy::GROUPS[0]);
    Delivery { reader, consumer: 0, offset, attempt, identity: Ok(identity), received }
}

/// A message whose publish was never answered, and that was stored.
fn stored_unknown(history: &History) -> Option<Identity> {
    let seen = &history.views[0].contents;
    let unknown = history.publishes.iter().filter(|publish| matches!(publish.outcome, Outcome::Unknown(_)));
    let mut stored = unknown
        .filter(|publish| seen.iter().any(|(_, identity)| identity.as_ref() == Ok(&publish.identity)))
        .map(|publish| publish.identity.clone());
    stored.next()
}

#[test]
fn catches_a_message_that_one_group_never_got() {
    check_caught(Property::NothingLost, |history| {
        let (offset, _) = middle(history)?;
        let group = toy::reader(toy::GROUPS[1]);
        history.deliveries.retain(|delivery| delivery.reader != group || delivery.offset != offset);
        Some(())
    });
}

#[test]
fn catches_a_message_that_is_gone_from_every_replica() {
    check_caught(Property::NothingLost, |history| {
        let (gone, _) = middle(history)?;
        for view in &mut history.views {
            view.contents.retain(|(offset, _)| *offset != gone);
        }
        Some(())
    });
}

#[test]
fn catches_a_message_nobody_published() {
    check_caught(Property::NoPhantom, |history| {
        let identity = Identity { queue: toy::QUEUE.to_owned(), producer: 1, sequence: 9_999, uuid: 1 };
        let offset = history.views[0].contents.len() as u64;
        history.deliveries.push(late_delivery(history, offset, 1, identity));
        Some(())
    });
}

#[test]
fn catches_a_damaged_body() {
    check_caught(Property::NoPhantom, |history| {
        let (offset, identity) = middle(history)?;
        let mut delivery = late_delivery(history, offset, 2, identity);
        delivery.identity = Err(Garbled { why: "bad checksum" });
        // The group acked it before; here only the damage counts.
        delivery.offset = history.views[0].contents.len() as u64;
        history.deliveries.push(delivery);
        Some(())
    });
}

#[test]
fn catches_a_message_in_the_wrong_queue() {
    check_caught(Property::NoPhantom, |history| {
        let (_, identity) = middle(history)?;
        let mut delivery = late_delivery(history, 0, 1, identity);
        delivery.reader.queue = "invoices".to_owned();
        history.deliveries.push(delivery);
        Some(())
    });
}

#[test]
fn catches_a_message_received_before_it_was_published() {
    check_caught(Property::NoPhantom, |history| {
        let (_, identity) = middle(history)?;
        let published = history.publishes.iter_mut().find(|publish| publish.identity == identity)?;
        published.invoked += Duration::from_secs(3_600);
        Some(())
    });
}

#[test]
fn catches_a_refused_message_that_shows() {
    check_caught(Property::FailedStaysHidden, |history| {
        let (_, identity) = middle(history)?;
        let published = history.publishes.iter_mut().find(|publish| publish.identity == identity)?;
        published.outcome = Outcome::Failed("no leader".to_owned());
        Some(())
    });
}

#[test]
fn catches_two_messages_at_one_offset() {
    check_caught(Property::OneMessagePerOffset, |history| {
        // The second one is never seen elsewhere, so that no other promise is broken by it.
        let mut publish = history.publishes.last()?.clone();
        publish.identity.uuid = 7;
        publish.identity.sequence += 1;
        publish.outcome = Outcome::Unknown("reset".to_owned());
        let hidden = publish.identity.clone();
        history.publishes.push(publish);
        let (offset, _) = middle(history)?;
        history.settlements.retain(|settlement| settlement.offset != offset);
        history.deliveries.push(late_delivery(history, offset, 2, hidden));
        Some(())
    });
}

#[test]
fn catches_two_messages_that_changed_places() {
    check_caught(Property::ProducerOrder, |history| {
        let (first, identity) = middle(history)?;
        let second = history.publishes.iter().find_map(|publish| match publish.outcome {
            Outcome::Ok(offset) if offset > first && publish.identity.producer == identity.producer => {
                Some(offset)
            }
            _ => None,
        })?;
        let other = |offset| match offset {
            offset if offset == first => second,
            offset if offset == second => first,
            offset => offset,
        };
        let identity_at: Vec<_> =
            history.views[0].contents.iter().map(|(_, identity)| identity.clone()).collect();
        for publish in &mut history.publishes {
            if let Outcome::Ok(offset) = &mut publish.outcome {
                *offset = other(*offset);
            }
        }
        for delivery in &mut history.deliveries {
            delivery.identity = identity_at[other(delivery.offset) as usize].clone();
        }
        for view in &mut history.views {
            for (offset, identity) in &mut view.contents {
                *identity = identity_at[other(*offset) as usize].clone();
            }
        }
        // Exchanged messages may be received before they are published; that is not what is tested here.
        for publish in &mut history.publishes {
            publish.invoked = Duration::ZERO;
        }
        Some(())
    });
}

#[test]
fn catches_first_deliveries_out_of_order() {
    check_caught(Property::ProducerOrder, |history| {
        history.disturbances.clear();
        history.settlements.clear();
        // One consumer of a group that got everything in order, but for two messages of one producer.
        let reader = toy::reader(toy::GROUPS[0]);
        history.deliveries.retain(|delivery| delivery.reader != reader);
        let mut contents = history.views[0].contents.clone();
        let (first, identity) = middle(history)?;
        let producer = identity.producer;
        let second = history.publishes.iter().find_map(|publish| match publish.outcome {
            Outcome::Ok(offset) if offset > first && publish.identity.producer == producer => Some(offset),
            _ => None,
        })?;
        contents.swap(first as usize, second as usize);
        let others = std::mem::take(&mut history.deliveries);
        for (offset, identity) in contents {
            history.deliveries.push(late_delivery(history, offset, 1, identity.ok()?));
        }
        history.deliveries.extend(others.into_iter().map(|mut delivery| {
            delivery.attempt = 2;
            delivery
        }));
        Some(())
    });
}

#[test]
fn catches_a_delivery_after_the_ack() {
    check_caught(Property::AckedStaysAcked, |history| {
        let group = toy::reader(toy::GROUPS[0]);
        let acked = history.settlements.iter().find(|settlement| {
            settlement.kind == SettlementKind::Ack && settlement.outcome.is_ok() && settlement.reader == group
        })?;
        let identity = history.views[0].contents[acked.offset as usize].1.clone().ok()?;
        history.deliveries.push(late_delivery(history, acked.offset, 2, identity));
        Some(())
    });
}

#[test]
fn catches_a_retry_that_was_stored_twice() {
    check_caught(Property::StoredOnce, |history| {
        let (_, identity) = middle(history)?;
        let offset = history.views[0].contents.len() as u64;
        history.deliveries.push(late_delivery(history, offset, 1, identity));
        Some(())
    });
}

#[test]
fn catches_a_delivery_for_no_reason() {
    check_caught(Property::RedeliveryJustified, |history| {
        let (offset, identity) = middle(history)?;
        history.settlements.retain(|settlement| settlement.offset != offset);
        // Neither a disturbance nor the end of the lease explains it.
        history.disturbances.clear();
        history.lease = Duration::MAX;
        history.deliveries.push(late_delivery(history, offset, 1, identity));
        Some(())
    });
}

#[test]
fn catches_a_replica_that_counts_differently() {
    check_caught(Property::ReplicasAgree, |history| {
        *history.counts[1].figures.values_mut().next()? += 1;
        Some(())
    });
}

#[test]
fn catches_a_replica_that_shows_something_else() {
    check_caught(Property::ReplicasAgree, |history| {
        let missing = stored_unknown(history)?;
        history.views[2].contents.retain(|(_, identity)| identity.as_ref() != Ok(&missing));
        Some(())
    });
}

#[test]
fn a_run_that_shows_nothing_is_no_pass() {
    check_unknown(|history| history.unfinished.push("orders/mail was not drained".to_owned()));
    check_unknown(|history| {
        history.faults_required.insert("kill the leader");
    });
    check_unknown(|history| {
        history.readers.insert(toy::reader("nobody"));
        history.publishes.retain(|publish| !publish.outcome.is_ok());
        let published: BTreeSet<_> = history.publishes.iter().map(|publish| publish.identity.uuid).collect();
        let is_published = |identity: &Identity| published.contains(&identity.uuid);
        history.deliveries.retain(|delivery| delivery.identity.as_ref().is_ok_and(is_published));
        for view in &mut history.views {
            view.contents.retain(|(_, identity)| identity.as_ref().is_ok_and(is_published));
        }
    });
    check_unknown(|history| history.views.truncate(1));
    check_unknown(|history| history.counts.truncate(1));
}

#[test]
fn what_was_disturbed_may_come_again() {
    let mut history = toy::history(3, STEPS);
    let (offset, identity) = middle(&history).unwrap();
    history.settlements.retain(|settlement| settlement.offset != offset);
    let again = late_delivery(&history, offset, 1, identity);
    history.disturbances.push(Disturbance { at: again.received, what: "kill the leader".to_owned() });
    history.deliveries.push(again);
    assert!(judge(&history).is_pass(), "{}", judge(&history));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_correct_queue_is_never_flagged(seed: u64, steps in 0..600_u32) {
        let verdict = judge(&toy::history(seed, steps));
        // Too few steps to deliver anything make a history that shows nothing; they never make one that is flagged.
        prop_assert!(!matches!(verdict, Verdict::Violated(_)), "{verdict}");
        prop_assert!(verdict.is_pass(), "{verdict}");
    }
}
