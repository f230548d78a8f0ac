//! Everyone sees the same message at an offset: publishers, consumers of every group, browsers of every replica.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Property, Violation};
use crate::history::{History, Sighting};

/// Violations: two statements that put different messages at one offset.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut first: BTreeMap<(&str, u64), Sighting<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for sighting in history.sightings() {
        match first.entry((sighting.queue, sighting.offset)) {
            Entry::Vacant(vacant) => {
                vacant.insert(sighting);
            }
            Entry::Occupied(known) if known.get().identity.uuid != sighting.identity.uuid => {
                let sentence = format!("offset {} of {} holds two messages", sighting.offset, sighting.queue);
                let evidence = [known.get(), &sighting];
                violations.push(Violation::new(Property::OneMessagePerOffset, sentence, evidence));
            }
            Entry::Occupied(_) => {}
        }
    }
    violations
}
