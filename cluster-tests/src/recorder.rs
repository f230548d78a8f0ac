//! Writes a history while it happens, from many tasks at once.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    history::{
        Delivery, Disturbance, History, Moment, Outcome, Publish, Reader, Seek, Settlement, SettlementKind,
    },
    rules::Wishes,
    stamp::{Garbled, Identity},
};

/// A history under way. Cheap to clone; clones write into the same one.
#[derive(Debug, Clone)]
pub struct Recorder {
    start: Instant,
    history: Arc<Mutex<History>>,
}

/// A call whose end is still to be recorded. One that never ends stays unknown.
#[derive(Debug)]
#[must_use = "the end of a call must be recorded"]
pub struct Call(usize);

impl Recorder {
    /// An empty history that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), history: Arc::default() }
    }

    /// The time on the history's clock.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.start.elapsed()
    }

    /// Reads or changes the history as it stands.
    pub fn with<T>(&self, body: impl FnOnce(&mut History) -> T) -> T {
        body(&mut self.lock())
    }

    /// A publish begins.
    pub fn publish_invoked(&self, identity: Identity, wishes: Wishes) -> Call {
        let mut history = self.lock();
        let invoked = self.now();
        history.publishes.push(Publish { identity, wishes, invoked, returned: None, outcome: open() });
        Call(history.publishes.len() - 1)
    }

    /// A publish ended.
    #[expect(clippy::needless_pass_by_value, reason = "a call ends once")]
    pub fn publish_returned(&self, call: Call, outcome: Outcome<u64>) {
        let publish = &mut self.lock().publishes[call.0];
        (publish.returned, publish.outcome) = (Some(self.now()), outcome);
    }

    /// A consumer got a message.
    pub fn delivered(
        &self,
        (reader, consumer): (&Reader, u64),
        offset: u64,
        attempt: u32,
        identity: Result<Identity, Garbled>,
    ) {
        let mut history = self.lock();
        let received = self.now();
        history.deliveries.push(Delivery {
            reader: reader.clone(),
            consumer,
            offset,
            attempt,
            identity,
            received,
        });
    }

    /// An ack or nack begins.
    pub fn settle_invoked(
        &self,
        (reader, consumer): (&Reader, u64),
        offset: u64,
        kind: SettlementKind,
    ) -> Call {
        let mut history = self.lock();
        let settlement = Settlement {
            reader: reader.clone(),
            consumer,
            offset,
            kind,
            invoked: self.now(),
            returned: None,
            outcome: open(),
        };
        history.settlements.push(settlement);
        Call(history.settlements.len() - 1)
    }

    /// An ack or nack ended.
    #[expect(clippy::needless_pass_by_value, reason = "a call ends once")]
    pub fn settle_returned(&self, call: Call, outcome: Outcome<()>) {
        let settlement = &mut self.lock().settlements[call.0];
        (settlement.returned, settlement.outcome) = (Some(self.now()), outcome);
    }

    /// The move of a group begins.
    pub fn seek_invoked(&self, reader: &Reader, to: u64) -> Call {
        let mut history = self.lock();
        let (reader, invoked) = (reader.clone(), self.now());
        history.seeks.push(Seek { reader, to, invoked, returned: None, outcome: open() });
        Call(history.seeks.len() - 1)
    }

    /// The move of a group ended.
    #[expect(clippy::needless_pass_by_value, reason = "a call ends once")]
    pub fn seek_returned(&self, call: Call, outcome: Outcome<()>) {
        let seek = &mut self.lock().seeks[call.0];
        (seek.returned, seek.outcome) = (Some(self.now()), outcome);
    }

    /// Connections break or leaders change from now on.
    pub fn disturbed(&self, what: impl Into<String>) {
        let at = self.now();
        self.lock().disturbances.push(Disturbance { at, what: what.into() });
    }

    /// A node's clock is set wrong, for a few seconds.
    pub fn clock_set(&self) {
        let at = self.now();
        self.lock().clocks_set.push(at);
    }

    /// A fault that the run promised has happened.
    pub fn fault_done(&self, fault: &'static str) {
        self.lock().faults_done.insert(fault);
    }

    /// The run cannot be brought to its end.
    pub fn unfinished(&self, why: impl Into<String>) {
        self.lock().unfinished.push(why.into());
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a call as long as its end is not known.
fn open<T>() -> Outcome<T> {
    Outcome::Unknown("it never returned".to_owned())
}
