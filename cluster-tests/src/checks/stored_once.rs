//! A message lies at one offset only, however often its publish was retried.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Property, Violation};
use crate::history::{History, Sighting};

/// Violations: two statements that put one message at different offsets of the queue it was published to. A
/// dead-letter queue may hold it once for every group that gave it up.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut first: BTreeMap<u64, Sighting<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for sighting in history.sightings().filter(|sighting| sighting.queue == sighting.identity.queue) {
        match first.entry(sighting.identity.uuid) {
            Entry::Vacant(vacant) => {
                vacant.insert(sighting);
            }
            Entry::Occupied(known) if known.get().offset != sighting.offset => {
                let offsets = [known.get().offset, sighting.offset];
                let sentence = format!("{} lies at the offsets {offsets:?}", sighting.identity);
                violations.push(Violation::new(Property::StoredOnce, sentence, [known.get(), &sighting]));
            }
            Entry::Occupied(_) => {}
        }
    }
    violations
}
