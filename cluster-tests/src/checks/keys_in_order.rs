//! Where messages of a key are handled in order, none comes before those with its key that lie before it are done.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Reader, Settlement, SettlementKind},
    rules::Rule,
};

/// Violations: a delivery of a message while one with the same key and a lower offset was never acked. Whether an ack
/// has taken effect is not asked: it may have, from when it was sent.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let is_keyed = |reader: &&Reader| history.rule(&reader.queue) == Some(Rule::Keyed);
    history.readers.iter().filter(is_keyed).flat_map(|reader| check_reader(history, reader)).collect()
}

/// What happens to a group.
enum Step<'a> {
    Ack(&'a Settlement),
    Delivery(&'a Delivery),
}

fn check_reader(history: &History, reader: &Reader) -> Vec<Violation> {
    let key_at = keys_by_offset(history, &reader.queue);
    let mut open: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (offset, key) in &key_at {
        open.entry(*key).or_default().insert(*offset);
    }
    let mut violations = Vec::new();
    for step in steps(history, reader) {
        match step {
            Step::Ack(ack) => {
                if let Some(open) = key_at.get(&ack.offset).and_then(|key| open.get_mut(key)) {
                    open.remove(&ack.offset);
                }
            }
            Step::Delivery(delivery) => {
                let Some(key) = key_at.get(&delivery.offset) else { continue };
                let first = open.get(key).and_then(BTreeSet::first);
                if let Some(first) = first.filter(|first| **first < delivery.offset) {
                    let offset = delivery.offset;
                    let sentence =
                        format!("{reader} got offset {offset} before {first} of the same key was done");
                    violations.push(Violation::new(Property::KeysInOrder, sentence, [delivery]));
                }
            }
        }
    }
    violations
}

/// What lies in a queue, as anybody has seen: also what the group has not got, which is what this is about.
fn keys_by_offset(history: &History, queue: &str) -> BTreeMap<u64, u64> {
    let published = history.publishes.iter().filter(|publish| publish.identity.queue == queue);
    let keys: BTreeMap<u64, u64> =
        published.filter_map(|publish| Some((publish.identity.uuid, publish.wishes.key?))).collect();
    let sightings = history.sightings().filter(|sighting| sighting.queue == queue);
    sightings.filter_map(|sighting| Some((sighting.offset, *keys.get(&sighting.identity.uuid)?))).collect()
}

/// In the order in which they happen; of those at the same moment, acks before deliveries.
fn steps<'a>(history: &'a History, reader: &'a Reader) -> Vec<Step<'a>> {
    let is_ack =
        |settlement: &&Settlement| settlement.reader == *reader && settlement.kind == SettlementKind::Ack;
    let acks = history.settlements.iter().filter(is_ack).map(|ack| (ack.invoked, Step::Ack(ack)));
    let deliveries = history.deliveries.iter().filter(|delivery| delivery.reader == *reader);
    let mut steps: Vec<_> =
        acks.chain(deliveries.map(|delivery| (delivery.received, Step::Delivery(delivery)))).collect();
    // It keeps the order of those that are equal.
    steps.sort_by_key(|(at, _)| *at);
    steps.into_iter().map(|(_, step)| step).collect()
}
