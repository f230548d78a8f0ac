//! Moves a group back to messages that it has had, again and again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::{RngExt as _, rngs::SmallRng};
use skein_client::{Client, Offset, Position};
use tokio::{sync::watch, time};

use crate::{
    history::{Outcome, Reader},
    recorder::Recorder,
};

/// The pause between two moves.
const MOVE_EVERY_MS: std::ops::Range<u64> = 2_000..5_000;

/// A group goes back by so many offsets at most.
const BACK_MAX: u64 = 200;

/// Moves one group.
pub(super) struct Mover {
    pub client: Client,
    pub reader: Reader,
    pub random: SmallRng,
    pub recorder: Recorder,
}

impl Mover {
    /// Moves it until told to stop.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        while !*stop.borrow() {
            let pause = Duration::from_millis(self.random.random_range(MOVE_EVERY_MS));
            match time::timeout(pause, stop.changed()).await {
                Ok(changed) => changed.context("the workload is gone")?,
                Err(_) => self.move_back().await,
            }
        }
        Ok(())
    }

    async fn move_back(&mut self) {
        let Some(newest) = self.newest() else { return };
        let to = newest.saturating_sub(self.random.random_range(0..=BACK_MAX));
        let call = self.recorder.seek_invoked(&self.reader, to);
        let position = Position::Offset(Offset::new(to));
        let outcome = match self.client.seek_group(&self.reader.queue, &self.reader.group, position).await {
            Ok(_) => Outcome::Ok(()),
            // It is tried again within the call, so that nobody knows what the first try has done.
            Err(error) => Outcome::Unknown(error.to_string()),
        };
        self.recorder.seek_returned(call, outcome);
    }

    /// The highest offset that was delivered to the group so far.
    fn newest(&self) -> Option<u64> {
        self.recorder.with(|history| {
            let deliveries = history.deliveries.iter().rev();
            let own = deliveries.filter(|delivery| delivery.reader == self.reader);
            own.map(|delivery| delivery.offset).max()
        })
    }
}
