//! Offsets follow the order of each producer's messages, and so do first deliveries to one consumer.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Outcome, Publish},
    rules::Rule,
};

/// Violations: a later message of a producer at a lower offset; a consumer that first gets a later message and then,
/// for the first time, an earlier one. Only confirmed messages count: one whose outcome is unknown may have been
/// stored late.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut violations = offsets_out_of_order(history);
    violations.extend(deliveries_out_of_order(history));
    violations
}

fn offsets_out_of_order(history: &History) -> Vec<Violation> {
    let mut producers: BTreeMap<_, Vec<(u64, u64, &Publish)>> = BTreeMap::new();
    for publish in &history.publishes {
        let identity = &publish.identity;
        // Where a message would have been that was there already says nothing.
        let is_placed = history.rule(&identity.queue) != Some(Rule::Ids);
        if let Outcome::Ok(offset) = publish.outcome
            && is_placed
        {
            let confirmed = producers.entry((&identity.queue, identity.producer)).or_default();
            confirmed.push((identity.sequence, offset, publish));
        }
    }
    let mut violations = Vec::new();
    for confirmed in producers.values_mut() {
        confirmed.sort_by_key(|(sequence, ..)| *sequence);
        for pair in confirmed.windows(2) {
            let [(_, earlier, first), (_, later, second)] = pair else {
                continue;
            };
            // Equal offsets are two messages at one offset, which another check finds.
            if earlier > later {
                let sentence = format!("{} lies before {}", second.identity, first.identity);
                violations.push(Violation::new(Property::ProducerOrder, sentence, [first, second]));
            }
        }
    }
    violations
}

/// Deliveries to different consumers cannot be compared, and a disturbance puts messages back: those that were on
/// their way to a consumer are delivered after later ones.
fn deliveries_out_of_order(history: &History) -> Vec<Violation> {
    let confirmed: BTreeSet<_> = history
        .publishes
        .iter()
        .filter(|publish| publish.outcome.is_ok())
        .map(|publish| publish.identity.uuid)
        .collect();
    let mut delivered = BTreeSet::new();
    let mut newest: BTreeMap<_, (u64, &Delivery)> = BTreeMap::new();
    let mut violations = Vec::new();
    for delivery in &history.deliveries {
        let Ok(identity) = &delivery.identity else {
            continue;
        };
        let is_first = delivered.insert((&delivery.reader, identity.uuid)) && delivery.attempt == 1;
        // In a dead-letter queue messages lie in the order in which they were given up, and some queues have another.
        let has_order = identity.queue == delivery.reader.queue
            && history.rule(&identity.queue).is_none_or(Rule::keeps_order);
        if !is_first || !has_order || !confirmed.contains(&identity.uuid) {
            continue;
        }
        let newest = newest
            .entry((&delivery.reader, delivery.consumer, identity.producer))
            .or_insert((identity.sequence, delivery));
        let (newest_sequence, newest_delivery) = *newest;
        if identity.sequence >= newest_sequence {
            *newest = (identity.sequence, delivery);
        } else if history.disturbance_between(newest_delivery.received, delivery.received).is_none()
            && !is_moved_between(history, newest_delivery, delivery)
        {
            let sentence = format!("{identity} was first delivered to {} after a later one", delivery.reader);
            violations.push(Violation::new(Property::ProducerOrder, sentence, [newest_delivery, delivery]));
        }
    }
    violations
}

/// Whether the group was moved: what was on its way to another consumer then comes to this one, perhaps, after what it
/// had taken already.
fn is_moved_between(history: &History, from: &Delivery, to: &Delivery) -> bool {
    history.seeks.iter().filter(|seek| seek.reader == to.reader).any(|seek| {
        seek.invoked <= to.received && seek.returned.is_none_or(|returned| returned >= from.received)
    })
}
