//! The future of one message's offset.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use skein_proto::ids::Offset;

use crate::{
    error::ConfirmError,
    outcome::{Outcome, WaiterSlot},
};

/// Where a batch is, or why it is nowhere.
pub(super) type BatchOutcome = Outcome<Result<Placed, ConfirmError>>;

/// Where the messages of a batch are.
#[derive(Debug)]
pub(super) enum Placed {
    /// From this offset on.
    At(Offset),
    /// Each went into another batch, at a place there: the partitions had become more.
    Apart(Vec<Place>),
}

/// A message of a batch.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) batch: Arc<BatchOutcome>,
    pub(super) index: u32,
}

/// Resolves to the offset of a message once it is on disk on a majority of replicas. May be dropped; the message is
/// published all the same.
#[derive(Debug)]
#[must_use = "a message is only safe once it is confirmed; drop this, or flush the producer, if that is intended"]
pub struct Confirm {
    place: Place,
    slot: WaiterSlot,
}

impl Confirm {
    pub(super) fn new(place: Place) -> Self {
        Self { place, slot: WaiterSlot::default() }
    }

    /// The outcome, if it is known already.
    #[must_use]
    pub fn try_get(&self) -> Option<Result<Offset, ConfirmError>> {
        let mut place = &self.place;
        loop {
            match offset_at(place.batch.get()?, place.index) {
                Ok(offset) => return Some(offset),
                Err(elsewhere) => place = elsewhere,
            }
        }
    }
}

impl Future for Confirm {
    type Output = Result<Offset, ConfirmError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let outcome = std::task::ready!(this.place.batch.poll(&mut this.slot, cx));
            let elsewhere = match offset_at(outcome, this.place.index) {
                Ok(offset) => return Poll::Ready(offset),
                Err(elsewhere) => elsewhere.clone(),
            };
            *this = Self::new(elsewhere);
        }
    }
}

/// The offset of a message of a batch, or where it went instead.
fn offset_at(
    outcome: &Result<Placed, ConfirmError>,
    index: u32,
) -> Result<Result<Offset, ConfirmError>, &Place> {
    match outcome {
        Ok(Placed::At(first)) => Ok(Ok(first.plus(index.into()))),
        Ok(Placed::Apart(places)) => Err(&places[index as usize]),
        Err(error) => Ok(Err(error.clone())),
    }
}

/// Waits until the outcome of a batch is known, wherever its messages went.
pub(super) async fn settled(batch: Arc<BatchOutcome>) {
    let mut waiting = vec![batch];
    while let Some(batch) = waiting.pop() {
        if let Ok(Placed::Apart(places)) = batch.wait().await {
            let mut batches: Vec<_> = places.iter().map(|place| Arc::clone(&place.batch)).collect();
            batches.dedup_by(|one, other| Arc::ptr_eq(one, other));
            waiting.extend(batches);
        }
    }
}
