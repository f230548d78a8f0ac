//! A confirmed message reaches every group that reads its queue, or is given up where it may be, and stays in a queue
//! that keeps everything.

use std::collections::{BTreeMap, BTreeSet};

use super::{Property, Violation};
use crate::{
    history::{History, Outcome, Publish},
    rules::Rule,
};

/// Violations: a confirmed message that a reader never got, or that a later browse of a kept queue does not show.
pub(super) fn check(history: &History) -> Vec<Violation> {
    if !history.unfinished.is_empty() {
        // What was not drained is not lost; the verdict says that nothing can be said.
        return Vec::new();
    }
    let mut violations = Vec::new();

    let mut delivered: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for delivery in &history.deliveries {
        if let Ok(identity) = &delivery.identity {
            delivered.entry(&delivery.reader).or_default().insert(identity.uuid);
        }
    }
    // A group that is moved may skip some, which another check judges.
    let judged = history.readers.iter().filter(|reader| history.rule(&reader.queue) != Some(Rule::Moved));
    for reader in judged {
        let given_up = history.given_up(&reader.queue).map(|(_, identity)| identity.uuid);
        let delivered = delivered.entry(reader).or_default();
        delivered.extend(given_up);
        let confirmed = confirmed(history, &reader.queue);
        for (position, publish) in missing(&confirmed, delivered) {
            let sentence = format!(
                "{} was confirmed and never delivered to {reader} ({position} of {} in the queue)",
                publish.identity,
                confirmed.len()
            );
            violations.push(Violation::new(Property::NothingLost, sentence, [publish]));
        }
    }

    for view in history.views.iter().filter(|view| history.kept.contains(&view.queue)) {
        let seen: BTreeSet<_> =
            view.contents.iter().filter_map(|(_, identity)| Some(identity.as_ref().ok()?.uuid)).collect();
        let confirmed: Vec<_> = confirmed(history, &view.queue)
            .into_iter()
            .filter(|publish| publish.returned.is_some_and(|returned| returned <= view.invoked))
            .collect();
        for (position, publish) in missing(&confirmed, &seen) {
            let sentence = format!(
                "{} was confirmed and is not there when node {} is browsed ({position} of {} in the queue)",
                publish.identity,
                view.node_id,
                confirmed.len()
            );
            violations.push(Violation::new(Property::NothingLost, sentence, [publish]));
        }
    }
    violations
}

/// Confirmed publishes to a queue, in the order of their offsets.
fn confirmed<'a>(history: &'a History, queue: &str) -> Vec<&'a Publish> {
    let mut confirmed: Vec<_> = history
        .publishes
        .iter()
        .filter(|publish| publish.identity.queue == queue)
        .filter_map(|publish| match publish.outcome {
            Outcome::Ok(offset) => Some((offset, publish)),
            _ => None,
        })
        .collect();
    confirmed.sort_by_key(|(offset, _)| *offset);
    confirmed.into_iter().map(|(_, publish)| publish).collect()
}

/// Those that were not seen, with where they lie among the others: a lost end means something else than a hole.
fn missing<'a>(
    confirmed: &[&'a Publish],
    seen: &BTreeSet<u64>,
) -> impl Iterator<Item = (&'static str, &'a Publish)> {
    let is_seen = |publish: &&Publish| seen.contains(&publish.identity.uuid);
    let first_seen = confirmed.iter().position(is_seen).unwrap_or(confirmed.len());
    let last_seen = confirmed.iter().rposition(is_seen).unwrap_or(0);
    confirmed.iter().enumerate().filter(move |(_, publish)| !seen.contains(&publish.identity.uuid)).map(
        move |(at, publish)| {
            let position = match at {
                at if at < first_seen => "at the beginning",
                at if at > last_seen => "at the end",
                _ => "in the middle",
            };
            (position, *publish)
        },
    )
}
