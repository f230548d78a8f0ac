//! After an ack or a rejection was answered, the group does not get the message again.

use std::collections::BTreeMap;

use super::{Property, Violation};
use crate::{
    history::{Delivery, History, Settlement, SettlementKind},
    rules::Rule,
};

/// Violations: a delivery received after an ok ack or rejection of that offset by that group had returned.
///
/// One that is ok says that nobody else held the message then. So an earlier delivery can only still be on its way
/// where its lease was lost, in the buffer of a stream that broke; what shows it is that it could not be settled.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut acks: BTreeMap<_, &Settlement> = BTreeMap::new();
    let mut attempts: BTreeMap<_, Vec<&Settlement>> = BTreeMap::new();
    for settlement in &history.settlements {
        let place = (&settlement.reader, settlement.offset);
        attempts.entry(place).or_default().push(settlement);
        if settlement.kind != SettlementKind::Nack && settlement.outcome.is_ok() {
            let earliest = acks.entry(place).or_insert(settlement);
            if settlement.returned < earliest.returned {
                *earliest = settlement;
            }
        }
    }
    let was_stale = |delivery: &Delivery| {
        let settled =
            attempts.get(&(&delivery.reader, delivery.offset)).into_iter().flatten().find(|settlement| {
                settlement.consumer == delivery.consumer && settlement.invoked >= delivery.received
            });
        settled.is_some_and(|settlement| !settlement.outcome.is_ok())
    };
    // A group that is moved back gets everything again.
    let is_moved = |delivery: &&Delivery| history.rule(&delivery.reader.queue) == Some(Rule::Moved);
    history
        .deliveries
        .iter()
        .filter(|delivery| !is_moved(delivery))
        .filter_map(|delivery| {
            let ack = acks.get(&(&delivery.reader, delivery.offset))?;
            ack.returned.filter(|returned| delivery.received > *returned)?;
            if was_stale(delivery) {
                return None;
            }
            let Delivery { reader, offset, .. } = delivery;
            let sentence = format!("{reader} got offset {offset} again after its {:?}", ack.kind);
            let evidence = [ack.to_string(), delivery.to_string()];
            Some(Violation::new(Property::AckedStaysAcked, sentence, evidence))
        })
        .collect()
}
