//! What of a batch goes to which queue.

use std::{collections::BTreeMap, ops::Range};

use bytes::{Bytes, BytesMut};
use skein_proto::ids::QueueId;

use super::routing::RoutingTable;
use crate::batch::{self, Fields};

/// A batch, shared out.
#[derive(Debug)]
pub(super) struct FanOut {
    batch: Bytes,
    /// Where each message lies in it.
    messages: Vec<Range<usize>>,
    /// The places of the messages that each queue gets, which rise.
    pub(super) places: BTreeMap<QueueId, Vec<u32>>,
    /// How many messages no queue gets.
    pub(super) unrouted: u32,
}

impl FanOut {
    /// Shares a checked batch out.
    pub(super) fn of(batch: Bytes, table: &RoutingTable) -> Self {
        let mut fan_out = Self { messages: Vec::new(), places: BTreeMap::new(), unrouted: 0, batch };
        let mut queues = Vec::new();
        let mut end = 0;
        for (place, (whole, message)) in (0..).zip(batch::encoded_messages(&fan_out.batch)) {
            table.queues_of(&Fields::of(message), &mut queues);
            fan_out.unrouted += u32::from(queues.is_empty());
            for queue in &queues {
                fan_out.places.entry(*queue).or_default().push(place);
            }
            fan_out.messages.push(end..end + whole.len());
            end += whole.len();
        }
        fan_out
    }

    /// What is to be known of a message to route it.
    pub(super) fn fields(&self, place: u32) -> Fields<'_> {
        let whole = &self.batch[self.messages[place as usize].clone()];
        let mut messages = batch::encoded_messages(whole).map(|(_, message)| message);
        Fields::of(messages.next().unwrap_or_default())
    }

    /// A batch of just the messages at these places. That of all is the batch itself, uncopied.
    pub(super) fn share(&self, places: &[u32]) -> Bytes {
        if places.len() == self.messages.len() {
            return self.batch.clone();
        }
        let messages = || places.iter().map(|&place| &self.batch[self.messages[place as usize].clone()]);
        let mut share = BytesMut::with_capacity(messages().map(<[u8]>::len).sum());
        messages().for_each(|message| share.extend_from_slice(message));
        share.freeze()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use skein_proto::{
        broker::{Message, MessageBatch},
        ids::TopicId,
        node::{self as wire, filter::Filter as Choice},
    };

    use super::*;
    use crate::broker::{Binding, Topic};

    #[test]
    fn each_queue_gets_what_its_bindings_want() {
        let wants = |key: &str| {
            let choice = Choice::KeyEquals(key.to_owned().into());
            wire::Filter { filter: Some(choice) }.encode_to_vec()
        };
        let binding = |queue, filter| Binding { queue: QueueId::new(queue), filter };
        let topic = Topic {
            id: TopicId::new(1),
            name: "t".into(),
            bindings: [binding(1, wants("a")), binding(2, wants("a")), binding(2, wants("b"))].into(),
            alternate: None,
            revision: 1,
        };
        let messages: Vec<_> = ["a", "b", "c", "a"]
            .into_iter()
            .map(|key| Message { key: key.into(), body: vec![7; 300].into(), ..Message::default() })
            .collect();
        let batch = Bytes::from(MessageBatch { messages: messages.clone() }.encode_to_vec());
        let fan_out = FanOut::of(batch.clone(), &RoutingTable::new(&topic));
        assert_eq!(fan_out.unrouted, 1);
        let places: Vec<_> = fan_out.places.values().cloned().collect();
        assert_eq!(places, [vec![0, 3], vec![0, 1, 3]]);
        let share = MessageBatch::decode(fan_out.share(&places[1])).unwrap().messages;
        assert_eq!(share, [0, 1, 3].map(|place: usize| messages[place].clone()));
        assert_eq!(fan_out.share(&[0, 1, 2, 3]).as_ptr(), batch.as_ptr());
    }
}
