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

/// The offset of a batch's first message, or why there is none.
pub(super) type BatchOutcome = Outcome<Result<Offset, ConfirmError>>;

/// Resolves to the offset of a message once it is on disk on a majority of replicas. May be dropped; the message is
/// published all the same.
#[derive(Debug)]
#[must_use = "a message is only safe once it is confirmed; drop this, or flush the producer, if that is intended"]
pub struct Confirm {
    batch: Arc<BatchOutcome>,
    index: u32,
    slot: WaiterSlot,
}

impl Confirm {
    pub(super) fn new(batch: Arc<BatchOutcome>, index: u32) -> Self {
        Self { batch, index, slot: WaiterSlot::default() }
    }

    /// The outcome, if it is known already.
    #[must_use]
    pub fn try_get(&self) -> Option<Result<Offset, ConfirmError>> {
        self.batch.get().map(|outcome| offset_of(outcome, self.index))
    }
}

impl Future for Confirm {
    type Output = Result<Offset, ConfirmError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.batch.poll(&mut this.slot, cx).map(|outcome| offset_of(outcome, this.index))
    }
}

fn offset_of(batch: &Result<Offset, ConfirmError>, index: u32) -> Result<Offset, ConfirmError> {
    match batch {
        Ok(first) => Ok(first.plus(index.into())),
        Err(error) => Err(error.clone()),
    }
}
