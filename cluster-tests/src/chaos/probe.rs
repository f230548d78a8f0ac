//! Publishes to a queue's leader all the time, a small message every few milliseconds, and notes when each was
//! confirmed: how long anybody waited for a confirm can be told as closely as that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use skein_client::{Client, Confirm, Overflow, QueueSettings, Retention};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

use super::DELIVERY_TIMEOUT;
use crate::{history::Moment, recorder::Recorder};

/// How often a message is sent.
const SEND_EVERY: Duration = Duration::from_millis(2);

/// Confirms that are awaited, in their order: more than are under way in any outage.
const WAITING_MAX: usize = 65_536;

/// What is kept of them.
const KEPT_MESSAGES: u64 = 1_000;

/// Publishes until it is dropped.
pub(super) struct Probe {
    confirmed: Arc<Mutex<Vec<Moment>>>,
    _tasks: JoinSet<()>,
}

impl Probe {
    /// Publishes to a queue of its own in the shard of this one.
    pub(super) async fn start(client: &Client, recorder: &Recorder, queue: &str) -> Result<Self> {
        let name = format!("probe-{queue}");
        let settings = QueueSettings {
            retention: Retention::Limits,
            max_messages: Some(KEPT_MESSAGES),
            overflow: Some(Overflow::DropOldest),
            ..QueueSettings::default()
        };
        client.create_colocated_queue(&name, settings, queue).await?;
        let producer = client.producer(&name).delivery_timeout(DELIVERY_TIMEOUT).build().await?;
        let confirmed = Arc::<Mutex<Vec<Moment>>>::default();
        let (sent, mut waiting) = mpsc::channel::<Confirm>(WAITING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut turns = time::interval(SEND_EVERY);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turns.tick().await;
                // Refused in full only when the run is at its end.
                let Ok(confirm) = producer.send("probe").await else { return };
                if sent.send(confirm).await.is_err() {
                    return;
                }
            }
        });
        let (recorder, moments) = (recorder.clone(), Arc::clone(&confirmed));
        tasks.spawn(async move {
            while let Some(confirm) = waiting.recv().await {
                if confirm.await.is_ok() {
                    moments.lock().unwrap_or_else(PoisonError::into_inner).push(recorder.now());
                }
            }
        });
        Ok(Self { confirmed, _tasks: tasks })
    }

    /// When messages were confirmed so far, in order.
    pub(super) fn confirmed(&self) -> Vec<Moment> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
