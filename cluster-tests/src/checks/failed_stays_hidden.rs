//! A publish that was refused for certain never shows.

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::history::{History, Outcome, Publish};

/// Violations: a message that was seen although its publish failed.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let is_failed = |publish: &&Publish| matches!(publish.outcome, Outcome::Failed(_));
    let mut failed: BTreeMap<u64, &Publish> =
        history.publishes.iter().filter(is_failed).map(|publish| (publish.identity.uuid, publish)).collect();
    // Several may publish the same message, and one of them may have had more luck.
    for publish in history.publishes.iter().filter(|publish| !is_failed(publish)) {
        failed.remove(&publish.identity.uuid);
    }
    history
        .sightings()
        .filter_map(|sighting| {
            let publish = failed.get(&sighting.identity.uuid)?;
            let sentence = format!("{} was refused and is there all the same", publish.identity);
            let evidence = [publish.to_string(), sighting.to_string()];
            Some(Violation::new(Property::FailedStaysHidden, sentence, evidence))
        })
        .collect()
}
