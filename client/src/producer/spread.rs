//! Publishing to a partitioned queue: each message goes to the partition of its key, also while there come to be more.
//!
//! A partition that is one of more than this producer knows of refuses what it is sent, all of it from some batch on.
//! That is spread anew, in its order, before anything else: a key that goes to a new partition has nothing on its way
//! to the old one any more.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future;
use skein_proto::partitions;
use tokio::runtime::Handle;

use super::{
    Confirm,
    batcher::{Limits, Refused, Unstored},
    confirm::{self, Place, Placed},
    lane::Lane,
    session::Destination,
};
use crate::{
    client::Client,
    error::{ConfirmError, Error, SendError},
    message::{BatchReader, EncodableMessage},
};

/// Messages without a key go to one partition so many at a time: they make batches there.
const TURN_MESSAGES: u32 = 256;

/// The lanes to all partitions of a queue.
#[derive(Debug)]
pub(super) struct Spread {
    client: Client,
    queue: String,
    settings: (Limits, Duration),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many partitions there were when the producer was built, and whenever a partition has told since; rising.
    counts: Vec<u32>,
    lanes: Vec<PartitionLane>,
    /// Which partition messages without a key go to, and how many more of them.
    turn: usize,
    turn_left: u32,
    is_closed: bool,
    /// How often what a partition refused was spread anew.
    spread_anew_count: u64,
}

#[derive(Debug, Clone)]
struct PartitionLane {
    lane: Arc<Lane>,
    /// How many partitions there are, as far as this one has told.
    partitions: u32,
}

impl Spread {
    /// Opens a lane to each partition.
    pub(super) async fn start(
        client: Client,
        queue: String,
        partitions: u32,
        settings: (Limits, Duration),
    ) -> Result<Arc<Self>, Error> {
        let state = State {
            counts: vec![partitions],
            lanes: Vec::new(),
            turn: rand::random_range(0..partitions as usize),
            turn_left: TURN_MESSAGES,
            is_closed: false,
            spread_anew_count: 0,
        };
        let spread = Arc::new(Self { client, queue, settings, state: Mutex::new(state) });
        let lanes = spread.lanes_to(0..partitions, partitions).await?;
        spread.lock().lanes = lanes;
        Ok(spread)
    }

    async fn lanes_to(
        self: &Arc<Self>,
        range: std::ops::Range<u32>,
        partitions: u32,
    ) -> Result<Vec<PartitionLane>, Error> {
        let lanes = range.map(|partition| async move {
            let name = partitions::name(&self.queue, partition);
            let shard = self.client.shard_of(&name).await?;
            let destination = Destination { name, mandatory: false, partition, partitions };
            let lane =
                Lane::start(self.client.clone(), destination, shard, self.settings, Some(Arc::clone(self)));
            Ok(PartitionLane { lane: Arc::new(lane), partitions })
        });
        future::try_join_all(lanes).await
    }

    /// Takes a message if its partition has room.
    pub(super) fn offer(&self, message: &EncodableMessage) -> Result<Confirm, Refused> {
        // Held until the message is in its lane: whoever spreads anew must find it there.
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refused::For(SendError::Closed));
        }
        let lane = state.lane_for(message);
        lane.offer(message)
    }

    pub(super) async fn wait_for_room(&self, message: &EncodableMessage) {
        let lane = self.lock().lane_for(message);
        lane.wait_for_room(message).await;
    }

    pub(super) async fn flush(&self) -> Result<(), ConfirmError> {
        loop {
            let (spread_anew_count, lanes) = {
                let state = self.lock();
                (state.spread_anew_count, state.lanes.clone())
            };
            let pending: Vec<_> = lanes.iter().filter_map(|of| of.lane.last_outcome()).collect();
            for last in pending {
                confirm::settled(last).await;
            }
            // What was spread anew meanwhile may lie before or behind anything.
            if self.lock().spread_anew_count == spread_anew_count {
                break;
            }
        }
        let failures: Vec<_> = self.lanes().iter().filter_map(|lane| lane.take_first_failure()).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Takes no more. Lanes stay open until all of them are done: what one is refused may be for another.
    pub(super) fn begin_close(&self) {
        self.lock().is_closed = true;
    }

    /// Ends the lanes, when everything is settled.
    pub(super) async fn ended(&self) {
        let lanes = self.lanes();
        lanes.iter().for_each(|lane| lane.begin_close());
        future::join_all(lanes.iter().map(|lane| lane.ended())).await;
    }

    /// Publishes in the background what was taken, and ends then.
    pub(super) fn finish_later(self: &Arc<Self>) {
        self.begin_close();
        let spread = Arc::clone(self);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                // Nobody is there to be told.
                let _ = spread.flush().await;
                spread.ended().await;
            })),
            Err(_) => spread.lanes().iter().for_each(|lane| lane.begin_close()),
        }
    }

    /// Spreads what a partition has refused over all that there are now. Gives how many that is; nothing when it is no
    /// more than was known, as by a node that has not heard of them.
    pub(super) async fn spread_anew(self: &Arc<Self>, partition: u32) -> Result<Option<u32>, Error> {
        let now = self.client.get_queue(&partitions::name(&self.queue, partition)).await?;
        let count = now.settings.partitions.unwrap_or_default();
        let known = u32::try_from(self.lock().lanes.len()).unwrap_or(u32::MAX);
        let mut new_lanes =
            if count > known { self.lanes_to(known..count, count).await? } else { Vec::new() };
        let mut state = self.lock();
        if count <= state.lanes[partition as usize].partitions {
            return Ok(None);
        }
        // Another partition may have told meanwhile.
        let missing = count.saturating_sub(u32::try_from(state.lanes.len()).unwrap_or(u32::MAX)) as usize;
        let surplus = new_lanes.len().saturating_sub(missing);
        for unneeded in new_lanes.drain(..surplus) {
            unneeded.lane.begin_close();
        }
        state.lanes.append(&mut new_lanes);
        state.lanes[partition as usize].partitions = count;
        if let Err(place) = state.counts.binary_search(&count) {
            state.counts.insert(place, count);
        }
        state.spread_anew_count += 1;
        state.move_unstored(partition as usize);
        Ok(Some(count))
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lock().lanes.iter().map(|of| Arc::clone(&of.lane)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lane_for(&mut self, message: &EncodableMessage) -> Arc<Lane> {
        let place = match message.message().spread_by() {
            Some(key) => place_of(key, &self.counts, |place| self.lanes[place].partitions),
            None => self.place_in_turn(message),
        };
        Arc::clone(&self.lanes[place].lane)
    }

    /// One partition after the other; one without room is passed over where another one has some.
    fn place_in_turn(&mut self, message: &EncodableMessage) -> usize {
        let count = self.lanes.len();
        if self.turn_left == 0 {
            self.begin_turn((self.turn + 1) % count);
        }
        let has_room = |place: &usize| self.lanes[*place].lane.batcher().has_room(message);
        let with_room = (0..count).map(|later| (self.turn + later) % count).find(has_room);
        if let Some(other) = with_room.filter(|place| *place != self.turn) {
            self.begin_turn(other);
        }
        self.turn_left -= 1;
        self.turn
    }

    fn begin_turn(&mut self, place: usize) {
        self.turn = place;
        self.turn_left = TURN_MESSAGES;
    }

    /// Moves everything out of a lane to where it belongs, which may be the same lane.
    fn move_unstored(&mut self, from: usize) {
        let unstored = self.lanes[from].lane.batcher().take_unstored();
        for Unstored { bytes, created, outcome } in unstored {
            // This producer has written them itself.
            let messages = BatchReader::new(bytes).map_while(Result::ok).map(EncodableMessage::new);
            let places: Vec<Place> =
                messages.map(|message| self.lane_for(&message).batcher().add(&message, || created)).collect();
            outcome.set(Ok(Placed::Apart(places)));
        }
        self.lanes[from].lane.room_was_made();
        for of in &self.lanes {
            let waker = of.lane.batcher().waker_if_sendable();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// The partition of a key: the one it had when there were fewer, until that one has told that there are more. It goes
/// on from there to the next, and past none, since each may have messages of the key on their way.
fn place_of(key: &[u8], counts: &[u32], told: impl Fn(usize) -> u32) -> usize {
    let place = |count: u32| partitions::of_key(key, count) as usize;
    let (first, later) = counts.split_first().expect("the count at first is there");
    let mut at = place(*first);
    for count in later {
        if told(at) < *count {
            break;
        }
        at = place(*count);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_passes_by_no_partition_that_it_may_have_messages_in() {
        let counts = [2, 5, 9];
        let places = |key: &str| counts.map(|count| partitions::of_key(key.as_bytes(), count) as usize);
        let keys = (0..).map(|number| format!("key-{number}"));
        let goes_everywhere = |key: &String| matches!(places(key), [a, b, c] if a != b && b != c);
        let key = keys.into_iter().find(goes_everywhere).unwrap();
        let [first, second, third] = places(&key);
        let at = |told_first: u32, told_second: u32| {
            let told = |place: usize| if place == first { told_first } else { told_second };
            place_of(key.as_bytes(), &counts, told)
        };
        assert_eq!([at(2, 9), at(5, 5), at(9, 5), at(9, 9)], [first, second, second, third]);
    }
}
