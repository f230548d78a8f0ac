//! Of what waits, the most urgent message comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Moment, Publish},
    rules::Rule,
};

/// A message waits from so long after its confirm: whoever confirms has applied it, and hears of it a moment later.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// Violations: a message that the only consumer of a queue got, which holds one at a time, while a more urgent one had
/// been there since before the consumer got the one before it.
pub(super) fn check(history: &History) -> Vec<Violation> {
    history.ruled(Rule::Urgent).flat_map(|queue| check_queue(history, queue)).collect()
}

fn check_queue(history: &History, queue: &str) -> Vec<Violation> {
    let mut confirmed: Vec<(Moment, &Publish)> = history
        .publishes
        .iter()
        .filter(|publish| publish.identity.queue == queue && publish.outcome.is_ok())
        .filter_map(|publish| Some((publish.returned? + NOTICED_WITHIN, publish)))
        .collect();
    confirmed.sort_by_key(|(waits_from, _)| *waits_from);
    let priorities: BTreeMap<u64, u8> =
        confirmed.iter().map(|(_, publish)| (publish.identity.uuid, publish.wishes.priority)).collect();

    let deliveries: Vec<_> =
        history.deliveries.iter().filter(|delivery| delivery.reader.queue == queue).collect();
    let mut arriving = confirmed.into_iter().peekable();
    let mut waiting: BTreeMap<u64, &Publish> = BTreeMap::new();
    let mut has_come = BTreeSet::new();
    let mut violations = Vec::new();
    for pair in deliveries.windows(2) {
        let [before, next] = pair else { continue };
        let uuid = |delivery: &Delivery| delivery.identity.as_ref().ok().map(|identity| identity.uuid);
        has_come.extend(uuid(before));
        while let Some((_, publish)) = arriving.next_if(|(waits_from, _)| *waits_from < before.received) {
            waiting.insert(publish.identity.uuid, publish);
        }
        waiting.retain(|uuid, _| !has_come.contains(uuid));
        let Some(priority) = uuid(next).and_then(|uuid| priorities.get(&uuid)) else { continue };
        let passed_over = waiting.values().find(|publish| publish.wishes.priority > *priority);
        // Another leader holds back for a while what may have been sent.
        let is_disturbed = history.disturbance_between(before.received, next.received).is_some();
        if let Some(passed_over) = passed_over.filter(|_| !is_disturbed) {
            let sentence = format!("offset {} of {queue} came before {}", next.offset, passed_over.identity);
            let evidence = [passed_over.to_string(), before.to_string(), next.to_string()];
            violations.push(Violation::new(Property::MostUrgentFirst, sentence, evidence));
        }
    }
    violations
}
