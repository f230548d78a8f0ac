//! What is given up for good is among the dead letters, once, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::history::{History, Publish, SettlementKind};

/// What a group, the only one of its queue, did with a message.
#[derive(Default)]
struct Fate {
    is_acked: bool,
    may_be_acked: bool,
    is_returned: bool,
    is_rejected: bool,
}

/// Violations, in queues that have a dead-letter queue: a message that lies there twice; one that lies there although
/// its ack was answered, or although nothing says why; one that was neither acked nor lies there.
pub(super) fn check(history: &History) -> Vec<Violation> {
    history.dead_letter_queues.keys().flat_map(|queue| check_queue(history, queue)).collect()
}

fn check_queue(history: &History, queue: &str) -> Vec<Violation> {
    let published: BTreeMap<u64, &Publish> = history
        .publishes
        .iter()
        .filter(|publish| publish.identity.queue == queue)
        .map(|publish| (publish.identity.uuid, publish))
        .collect();
    let fates = fates(history, queue);
    let mut dead = BTreeSet::new();
    let mut violations = Vec::new();
    let mut report = |sentence: String, publish: &Publish| {
        violations.push(Violation::new(Property::GivenUpOnce, sentence, [publish]));
    };
    for (offset, identity) in history.given_up(queue) {
        // What nobody published is found by another check.
        let Some(publish) = published.get(&identity.uuid) else { continue };
        if !dead.insert(identity.uuid) {
            report(
                format!("{identity} lies among the dead letters twice, again at offset {offset}"),
                publish,
            );
        }
        let fate = fates.get(&identity.uuid);
        if fate.is_some_and(|fate| fate.is_acked) {
            report(format!("{identity} was acked, and is a dead letter all the same"), publish);
        }
        if publish.wishes.ttl.is_none() && !fate.is_some_and(|fate| fate.is_returned) {
            report(format!("{identity} was given up for no reason"), publish);
        }
    }
    // A queue that was not drained may hold what is missing.
    let is_done = history.unfinished.is_empty() && history.given_up_is_known(queue);
    for publish in published.values().filter(|publish| is_done && publish.outcome.is_ok()) {
        let uuid = publish.identity.uuid;
        let fate = fates.get(&uuid);
        let may_be_acked = fate.is_some_and(|fate| (fate.is_acked || fate.may_be_acked) && !fate.is_rejected);
        if !may_be_acked && !dead.contains(&uuid) {
            let what = if fate.is_some_and(|fate| fate.is_rejected) {
                "rejected, and not"
            } else {
                "neither acked nor"
            };
            report(format!("{} was {what} given up", publish.identity), publish);
        }
    }
    violations
}

fn fates(history: &History, queue: &str) -> BTreeMap<u64, Fate> {
    let deliveries = history.deliveries.iter().filter(|delivery| delivery.reader.queue == queue);
    let at: BTreeMap<u64, u64> = deliveries
        .filter_map(|delivery| Some((delivery.offset, delivery.identity.as_ref().ok()?.uuid)))
        .collect();
    let mut fates: BTreeMap<u64, Fate> = BTreeMap::new();
    for settlement in history.settlements.iter().filter(|settlement| settlement.reader.queue == queue) {
        let Some(uuid) = at.get(&settlement.offset) else { continue };
        let fate = fates.entry(*uuid).or_default();
        fate.is_returned |= settlement.kind != SettlementKind::Ack;
        match settlement.kind {
            SettlementKind::Ack if settlement.outcome.is_ok() => fate.is_acked = true,
            SettlementKind::Ack => fate.may_be_acked = true,
            SettlementKind::Reject if settlement.outcome.is_ok() => fate.is_rejected = true,
            SettlementKind::Nack | SettlementKind::Reject => {}
        }
    }
    fates
}
