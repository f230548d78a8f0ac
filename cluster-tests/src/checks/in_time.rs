//! No message comes before it is due, nor after its time to live.

use std::{collections::BTreeMap, time::Duration};

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Moment, Publish},
    rules::{ON_ITS_WAY, Rule},
};

/// Times on the wire are in whole milliseconds, and clocks are compared that are read one after the other.
const ROUNDING: Duration = Duration::from_millis(2);

/// Violations: a delivery before the message's delay has passed since it was handed to its producer, or after its time
/// to live has passed since it was confirmed. While clocks are wrong, nothing is said.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let published: BTreeMap<u64, &Publish> = history
        .publishes
        .iter()
        .filter(|publish| history.rule(&publish.identity.queue) == Some(Rule::Timed))
        .map(|publish| (publish.identity.uuid, publish))
        .collect();
    let mut violations = Vec::new();
    for delivery in &history.deliveries {
        let publish = delivery.identity.as_ref().ok().and_then(|identity| published.get(&identity.uuid));
        let Some(publish) = publish else { continue };
        if history.clocks_wrong_between(publish.invoked, delivery.received) {
            continue;
        }
        let delay = publish.wishes.delay.unwrap_or_default();
        let mut report = |property, what: String| {
            let sentence = format!("{} came {what}", publish.identity);
            let evidence = [publish.to_string(), delivery.to_string()];
            violations.push(Violation::new(property, sentence, evidence));
        };
        if let Some(early) = (publish.invoked + delay).checked_sub(delivery.received + ROUNDING) {
            report(Property::NotBeforeDue, format!("{early:?} before it was due"));
        }
        if let Some(late) = lateness(history, publish, delivery, delay) {
            report(Property::NotAfterExpiry, format!("{late:?} after its time to live had ended"));
        }
    }
    violations
}

/// By how much a delivery is too late for the message's time to live.
fn lateness(history: &History, publish: &Publish, delivery: &Delivery, delay: Duration) -> Option<Duration> {
    let expired: Moment = publish.returned? + delay + publish.wishes.ttl?;
    let late = delivery.received.checked_sub(expired + ON_ITS_WAY)?;
    // What a leader has sent that then stood still arrives when it stands still no more.
    let is_disturbed = history.disturbance_between(expired, delivery.received).is_some();
    (publish.outcome.is_ok() && !is_disturbed).then_some(late)
}
