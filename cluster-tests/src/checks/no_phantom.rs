//! Only what was published is delivered: unharmed, in its queue, and not before it was published.

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::history::{History, Moment, Publish, SightingSource};

/// Violations: a body that cannot be read, a message nobody published, one in a queue where it does not belong, one
/// received before its publish began.
pub(super) fn check(history: &History) -> Vec<Violation> {
    // Of several that publish the same message the first one counts.
    let mut published: BTreeMap<u64, &Publish> = BTreeMap::new();
    for publish in &history.publishes {
        let first = published.entry(publish.identity.uuid).or_insert(publish);
        if publish.invoked < first.invoked {
            *first = publish;
        }
    }
    let mut violations = garbled(history);

    for sighting in history.sightings() {
        let seen = match sighting.source {
            SightingSource::Confirm(_) => continue,
            SightingSource::Delivery(delivery) => delivery.received,
            // Browsed when all publishing was over.
            SightingSource::View(_) => Moment::MAX,
        };
        let mut report = |sentence: String, publish: Option<&Publish>| {
            let evidence = [Some(sighting.to_string()), publish.map(ToString::to_string)];
            violations.push(Violation::new(Property::NoPhantom, sentence, evidence.into_iter().flatten()));
        };

        let identity = sighting.identity;
        let Some(publish) = published.get(&identity.uuid).filter(|publish| publish.identity == *identity)
        else {
            report(format!("nobody published {identity}"), None);
            continue;
        };
        let is_at_home = identity.queue == sighting.queue
            || history.dead_letter_queues.get(&identity.queue).is_some_and(|queue| queue == sighting.queue);
        if !is_at_home {
            report(format!("{identity} was seen in the queue {}", sighting.queue), Some(publish));
        }
        if seen < publish.invoked {
            report(format!("{identity} was received before it was published"), Some(publish));
        }
    }
    violations
}

fn garbled(history: &History) -> Vec<Violation> {
    let delivered = history.deliveries.iter().filter_map(|delivery| {
        let garbled = delivery.identity.as_ref().err()?;
        let sentence =
            format!("a delivery to {} is not what was published: {}", delivery.reader, garbled.why);
        Some(Violation::new(Property::NoPhantom, sentence, [delivery]))
    });
    let browsed = history.views.iter().flat_map(|view| {
        view.contents.iter().filter_map(move |(offset, identity)| {
            let garbled = identity.as_ref().err()?;
            let sentence = format!(
                "what node {} shows at offset {offset} of {} is not what was published: {}",
                view.node_id, view.queue, garbled.why
            );
            Some(Violation::new(Property::NoPhantom, sentence, [""; 0]))
        })
    });
    delivered.chain(browsed).collect()
}
