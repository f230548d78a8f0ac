//! A message is delivered again only for a reason: it was returned, its lease ran out, or something was disturbed.

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Moment, SettlementKind},
    rules::Rule,
};

/// Violations: a message delivered to a group a second time as if it were the first, with nothing in between that
/// could have returned it.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut nacks: BTreeMap<_, Vec<Moment>> = BTreeMap::new();
    for settlement in &history.settlements {
        if settlement.kind == SettlementKind::Nack {
            nacks.entry((&settlement.reader, settlement.offset)).or_default().push(settlement.invoked);
        }
    }
    let mut latest: BTreeMap<_, &Delivery> = BTreeMap::new();
    let mut violations = Vec::new();
    // A group that is moved back gets everything again.
    let is_moved = |delivery: &&Delivery| history.rule(&delivery.reader.queue) == Some(Rule::Moved);
    for delivery in history.deliveries.iter().filter(|delivery| !is_moved(delivery)) {
        let key = (&delivery.reader, delivery.offset);
        let Some(before) = latest.insert(key, delivery) else {
            continue;
        };
        let between = before.received..=delivery.received;
        let is_justified = delivery.attempt > 1
            || nacks.get(&key).is_some_and(|nacks| nacks.iter().any(|nack| between.contains(nack)))
            || delivery.received.saturating_sub(before.received) >= history.lease
            || history.disturbance_between(before.received, delivery.received).is_some();
        if !is_justified {
            let sentence = format!(
                "offset {} was delivered to {} again for no reason",
                delivery.offset, delivery.reader
            );
            violations.push(Violation::new(Property::RedeliveryJustified, sentence, [before, delivery]));
        }
    }
    violations
}
