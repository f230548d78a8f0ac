//! How many consumers a group has, as each of them is told: it says so to the next leader, which waits for no more.

use std::{collections::BTreeMap, time::Duration};

use skein_proto::ids::QueueId;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use crate::dispatch::GroupKey;

/// How often one consumer is told at most: when thousands come at the same time, not of each.
const TOLD_INTERVAL: Duration = Duration::from_millis(100);

/// What the consumers of each group are told.
#[derive(Debug, Default)]
pub(super) struct Companies(BTreeMap<GroupKey, watch::Sender<u32>>);

/// How many consumers a group has, now and whenever that changes.
#[derive(Debug, Clone)]
pub struct Company {
    count: watch::Receiver<u32>,
    told: u32,
    next_at: Instant,
}

impl Companies {
    /// A consumer joins the group; with it there are so many.
    pub(super) fn join(&mut self, key: GroupKey, count: u32) -> Company {
        let sender = self.0.entry(key).or_insert_with(|| watch::Sender::new(count));
        sender.send_replace(count);
        Company { count: sender.subscribe(), told: count, next_at: Instant::now() }
    }

    /// A queue has gone, and all of its groups.
    pub(super) fn end(&mut self, queue: QueueId) {
        let keys: Vec<_> = self.0.range(GroupKey::all_of(queue)).map(|(key, _)| *key).collect();
        for key in keys {
            self.0.remove(&key);
        }
    }

    /// There are now so many.
    pub(super) fn change(&mut self, key: GroupKey, count: u32) {
        let Some(sender) = self.0.get(&key) else { return };
        sender.send_replace(count);
        if count == 0 {
            self.0.remove(&key);
        }
    }
}

impl Company {
    /// What was told last.
    #[must_use]
    pub const fn told(&self) -> u32 {
        self.told
    }

    /// Waits until there are more or fewer, and says how many. Never ends once the group has gone.
    ///
    /// Cancel safe: what was not told is told by the next call.
    pub async fn next(&mut self) -> u32 {
        let told = self.told;
        if self.count.wait_for(|count| *count != told).await.is_err() {
            return std::future::pending().await;
        }
        time::sleep_until(self.next_at).await;
        self.told = *self.count.borrow();
        self.next_at = Instant::now() + TOLD_INTERVAL;
        self.told
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use skein_proto::ids::GroupId;

    use super::*;

    const KEY: GroupKey = GroupKey { queue: QueueId::new(1), group: GroupId::new(1) };

    #[tokio::test]
    async fn who_is_there_is_told_of_others_and_not_too_often() {
        let mut companies = Companies::default();
        let mut company = companies.join(KEY, 1);
        assert_eq!(company.told(), 1);
        companies.join(KEY, 2);
        assert_eq!(company.next().await, 2);
        let told_at = Instant::now();
        for count in 3..100 {
            companies.join(KEY, count);
        }
        assert_eq!(company.next().await, 99);
        assert!(told_at.elapsed() >= TOLD_INTERVAL);
        companies.change(KEY, 99);
        assert_eq!(company.next().now_or_never(), None, "nothing has changed");
        companies.change(KEY, 0);
        assert!(companies.0.is_empty());
        companies.join(KEY, 1);
        companies.end(KEY.queue);
        assert!(companies.0.is_empty());
    }
}
