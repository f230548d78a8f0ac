//! Deletes queues that nobody uses any more and that are to go then.

use std::{collections::BTreeMap, sync::Arc};

use skein_proto::ids::QueueId;
use tokio::sync::mpsc;

use super::dead_letters::Courier;
use crate::broker::Queue;

/// Since when nobody uses the queues that go when nobody does.
#[derive(Debug, Default)]
pub(super) struct IdleQueues {
    idle_since_ms: BTreeMap<QueueId, u64>,
}

/// A queue that is to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unused {
    pub(super) name: String,
    pub(super) queue: QueueId,
}

impl IdleQueues {
    /// Looks at all queues that may go, and says which are to. One that is seen for the first time is taken to have
    /// been in use until now: its consumers may be about to find this leader.
    pub(super) fn look<'a>(
        &mut self,
        queues: impl Iterator<Item = &'a Queue>,
        is_in_use: impl Fn(QueueId) -> bool,
        now_ms: u64,
    ) -> Vec<Unused> {
        let mut seen = BTreeMap::new();
        let mut unused = Vec::new();
        for queue in queues {
            let Some(expires_ms) = queue.settings().expires_ms else { continue };
            let known_ms = self.idle_since_ms.get(&queue.id()).copied().unwrap_or(now_ms);
            let idle_since_ms = if is_in_use(queue.id()) { now_ms } else { known_ms.max(queue.used_at_ms()) };
            if now_ms.saturating_sub(idle_since_ms) >= expires_ms {
                unused.push(Unused { name: queue.name().to_owned(), queue: queue.id() });
            }
            seen.insert(queue.id(), idle_since_ms);
        }
        self.idle_since_ms = seen;
        unused
    }
}

/// Deletes what is named in `unused`. Runs until that closes. What could not be deleted is named again.
pub(super) async fn run(courier: Arc<dyn Courier>, mut unused: mpsc::UnboundedReceiver<Unused>) {
    while let Some(Unused { name, queue }) = unused.recv().await {
        match courier.delete(name.clone(), queue).await {
            Ok(()) => tracing::info!(queue = name, "deleted: nobody used it for as long as it may be unused"),
            Err(error) => tracing::debug!(queue = name, %error, "an unused queue could not be deleted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Command, EntryMeta, Settings, Shard};

    #[test]
    fn a_queue_goes_when_nobody_used_it_for_its_time() {
        let mut shard = Shard::new();
        let open = |id, expires_ms| Command::OpenQueue {
            queue: QueueId::new(id),
            name: format!("queue-{id}"),
            settings: Settings { expires_ms, ..Settings::default() },
            revision: 0,
        };
        let meta = EntryMeta { index: 1, leader_time_ms: 500, replicated_index: 0 };
        shard.apply(meta, &[open(1, Some(100)), open(2, Some(100)), open(3, None)]);
        let mut idle = IdleQueues::default();
        let mut look = |now_ms, in_use: &[u64]| {
            let is_in_use = |queue: QueueId| in_use.contains(&queue.get());
            let unused = idle.look(shard.queues(), is_in_use, now_ms);
            unused.into_iter().map(|unused| unused.queue.get()).collect::<Vec<_>>()
        };
        assert!(look(1_000, &[]).is_empty(), "they were opened long ago, but this is the first look");
        assert!(look(1_050, &[2]).is_empty());
        assert_eq!(look(1_100, &[]), [1]);
        assert_eq!(look(1_149, &[]), [1], "it could not be deleted");
        assert_eq!(look(1_150, &[]), [1, 2]);
    }
}
