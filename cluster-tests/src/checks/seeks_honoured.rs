//! A group goes on from where it was moved to.

use std::{collections::BTreeSet, time::Duration};

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Moment, Outcome, Seek},
    rules::Rule,
};

/// What was on its way when the group was moved may arrive for so long.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The first message from there comes within this.
const COMES_WITHIN: Duration = Duration::from_secs(2);

/// Violations: after a group was moved, and before it was moved again, a message from before that place, or none from
/// it on; and after the last time, a message from there on that it did not get again.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let moved = |queue: &str| history.rule(queue) == Some(Rule::Moved);
    let readers: BTreeSet<_> = history.readers.iter().filter(|reader| moved(&reader.queue)).collect();
    let mut violations = Vec::new();
    for reader in readers {
        let seeks: Vec<_> = history.seeks.iter().filter(|seek| seek.reader == *reader).collect();
        // One whose outcome is unknown may take effect at any time.
        let is_known = |seek: &&&Seek| seek.outcome.is_ok();
        let known = seeks.iter().take_while(is_known).count();
        for (number, seek) in seeks[..known].iter().enumerate() {
            let until = seeks.get(number + 1).map_or(Moment::MAX, |next| next.invoked);
            let of_reader = |delivery: &&Delivery| delivery.reader == *reader;
            let deliveries: Vec<_> = history
                .deliveries
                .iter()
                .filter(of_reader)
                .filter(|delivery| seek.invoked < delivery.received && delivery.received < until)
                .collect();
            violations.extend(check_seek(history, seek, until, &deliveries));
        }
    }
    violations
}

fn check_seek(history: &History, seek: &Seek, until: Moment, deliveries: &[&Delivery]) -> Vec<Violation> {
    let Some(returned) = seek.returned else { return Vec::new() };
    let mut violations = Vec::new();
    let mut report = |sentence: String, delivery: Option<&Delivery>| {
        let evidence = [Some(seek.to_string()), delivery.map(ToString::to_string)];
        violations.push(Violation::new(Property::SeeksHonoured, sentence, evidence.into_iter().flatten()));
    };
    let is_calm = |until| history.disturbance_between(seek.invoked, until).is_none();
    for delivery in deliveries.iter().filter(|delivery| delivery.offset < seek.to) {
        if delivery.received > returned + ON_ITS_WAY && is_calm(delivery.received) {
            let sentence = format!("{} got offset {} after it was moved", seek.reader, delivery.offset);
            report(sentence, Some(delivery));
        }
    }
    let got: BTreeSet<_> = deliveries.iter().map(|delivery| delivery.offset).collect();
    let due = returned + COMES_WITHIN;
    if due < until && is_calm(due) && !got.contains(&seek.to) {
        report(format!("{} did not go on from offset {}", seek.reader, seek.to), None);
    }
    if until == Moment::MAX && history.unfinished.is_empty() {
        let missing = history.publishes.iter().find_map(|publish| match publish.outcome {
            Outcome::Ok(offset) if publish.identity.queue == seek.reader.queue => {
                (offset >= seek.to && !got.contains(&offset)).then_some(offset)
            }
            _ => None,
        });
        if let Some(missing) = missing {
            report(format!("{} did not get offset {missing} after it was moved", seek.reader), None);
        }
    }
    violations
}
