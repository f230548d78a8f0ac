//! Which partition of a queue gets which messages of a batch that a topic passes on.

use std::collections::{BTreeMap, BTreeSet};

use skein_proto::{node::RoutedBatch, partitions};

use super::fan_out::FanOut;

/// Spreads messages over the partitions of one queue.
#[derive(Debug)]
pub(super) struct Spread {
    partitions: u32,
    /// What the partitions have got, by the sequence of the batch: when there were fewer of them, each may have got
    /// what would go to another one now.
    stored: BTreeMap<u64, BTreeSet<u32>>,
    /// Where the next message goes that may go anywhere and need not be found again.
    turn: u64,
}

/// What the partitions get of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// The places of the messages for each partition, which rise.
    pub places: BTreeMap<u32, Vec<u32>>,
    /// How many messages one of them has already.
    pub stored: u32,
}

impl Spread {
    /// Over so many partitions.
    pub(super) const fn over(partitions: u32) -> Self {
        Self { partitions, stored: BTreeMap::new(), turn: 0 }
    }

    /// How many there are.
    pub(super) const fn partitions(&self) -> u32 {
        self.partitions
    }

    /// Takes note of what a partition has got before.
    pub(super) fn note_stored(&mut self, batches: &[RoutedBatch]) {
        for RoutedBatch { sequence, places } in batches {
            self.stored.entry(*sequence).or_default().extend(places);
        }
    }

    /// Shares out the messages at these places. The same batch is shared out in the same way, but for what is there.
    pub(super) fn share(&mut self, sequence: u64, places: &[u32], batch: &FanOut) -> Shares {
        let mut shares = Shares { places: BTreeMap::new(), stored: 0 };
        for &place in places {
            if self.stored.get(&sequence).is_some_and(|stored| stored.contains(&place)) {
                shares.stored += 1;
                continue;
            }
            let fields = batch.fields(place);
            let partition = match partitions::spread_by(fields.key(), fields.message_id()) {
                Some(key) => partitions::of_key(key, self.partitions),
                None => self.anywhere(sequence, place),
            };
            shares.places.entry(partition).or_default().push(place);
        }
        shares
    }

    fn anywhere(&mut self, sequence: u64, place: u32) -> u32 {
        let turn = if sequence == 0 {
            self.turn += 1;
            self.turn
        } else {
            sequence.wrapping_add(u64::from(place))
        };
        u32::try_from(turn % u64::from(self.partitions)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;
    use skein_proto::{
        broker::{Message, MessageBatch},
        ids::{QueueId, TopicId},
    };

    use super::*;
    use crate::{
        api::topics::routing::RoutingTable,
        broker::{Binding, Topic},
    };

    fn fan_out(keys: &[&str]) -> FanOut {
        let message = |key: &&str| Message { key: (*key).to_owned().into(), ..Message::default() };
        let messages = keys.iter().map(message).collect();
        let topic = Topic {
            id: TopicId::new(1),
            name: "t".into(),
            bindings: [Binding { queue: QueueId::new(1), filter: Vec::new() }].into(),
            alternate: None,
            revision: 1,
        };
        FanOut::of(Bytes::from(MessageBatch { messages }.encode_to_vec()), &RoutingTable::new(&topic))
    }

    #[test]
    fn keys_go_where_they_belong_and_others_take_turns() {
        let batch = fan_out(&["customer-1", "", "customer-1", "", ""]);
        let mut spread = Spread::over(3);
        let Shares { places, stored } = spread.share(9, &[0, 1, 2, 3, 4], &batch);
        assert_eq!((places[&1].as_slice(), stored), ([0, 1, 2, 4].as_slice(), 0));
        assert_eq!(places[&0], [3]);
        assert_eq!(spread.share(9, &[0, 1, 2, 3, 4], &batch), Shares { places, stored }, "sent again");
        // Those that are not looked for again go anywhere.
        let turns: BTreeSet<_> =
            (0..3).flat_map(|_| spread.share(0, &[1], &batch).places.into_keys()).collect();
        assert_eq!(turns.len(), 3);
    }

    #[test]
    fn what_a_partition_has_goes_to_no_other() {
        let batch = fan_out(&["customer-1", "customer-2", "customer-3"]);
        let mut spread = Spread::over(8);
        let all = spread.share(4, &[0, 1, 2], &batch);
        spread.note_stored(&[RoutedBatch { sequence: 4, places: vec![1] }]);
        let rest = spread.share(4, &[0, 1, 2], &batch);
        assert_eq!(rest.stored, 1);
        let places = |shares: &Shares| shares.places.values().flatten().copied().collect::<BTreeSet<_>>();
        assert_eq!((places(&all), places(&rest)), ([0, 1, 2].into(), [0, 2].into()));
        assert_eq!(spread.share(5, &[1], &batch).stored, 0, "that is another batch");
    }
}
