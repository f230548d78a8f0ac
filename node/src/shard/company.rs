//! How many consumers a group has, as each of them is told: it says so to the next leader, which waits for no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skein_proto::ids::QueueId;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use crate::dispatch::{ConsumerId, GroupKey};

/// How often one consumer is told at most: when thousands come at the same time, not of each.
const TOLD_INTERVAL: Duration = Duration::from_millis(100);

/// What the consumers of each group are told.
#[derive(Debug, Default)]
pub(super) struct Companies(BTreeMap<GroupKey, Members>);

#[derive(Debug)]
struct Members {
    consumers: BTreeSet<ConsumerId>,
    told: watch::Sender<u32>,
}

/// How many consumers a group has, now and whenever that changes.
#[derive(Debug, Clone)]
pub struct Company {
    count: watch::Receiver<u32>,
    told: u32,
    next_at: Instant,
}

impl Companies {
    /// A consumer joins the group. Those count as well that may still come back: `expected` in all.
    pub(super) fn join(&mut self, key: GroupKey, consumer: ConsumerId, expected: u32) -> Company {
        let new = || Members { consumers: BTreeSet::new(), told: watch::Sender::new(0) };
        let members = self.0.entry(key).or_insert_with(new);
        members.consumers.insert(consumer);
        let told = members.tell(expected);
        Company { count: members.told.subscribe(), told, next_at: Instant::now() }
    }

    /// A consumer leaves the group, if it is there.
    pub(super) fn leave(&mut self, key: GroupKey, consumer: ConsumerId, expected: u32) {
        let Some(members) = self.0.get_mut(&key) else { return };
        members.consumers.remove(&consumer);
        if members.consumers.is_empty() {
            self.0.remove(&key);
        } else {
            members.tell(expected);
        }
    }

    /// Nobody is waited for any more.
    pub(super) fn wait_for_nobody(&mut self, key: GroupKey) {
        self.0.get_mut(&key).map(|members| members.tell(0));
    }

    /// A group has gone.
    pub(super) fn end(&mut self, key: GroupKey) {
        self.0.remove(&key);
    }

    /// A queue has gone, and all of its groups.
    pub(super) fn end_all(&mut self, queue: QueueId) {
        let keys: Vec<_> = self.0.range(GroupKey::all_of(queue)).map(|(key, _)| *key).collect();
        for key in keys {
            self.0.remove(&key);
        }
    }
}

impl Members {
    fn tell(&mut self, expected: u32) -> u32 {
        let count = u32::try_from(self.consumers.len()).unwrap_or(u32::MAX).max(expected);
        self.told.send_replace(count);
        count
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
        let id = ConsumerId::new;
        let mut companies = Companies::default();
        let mut company = companies.join(KEY, id(1), 0);
        assert_eq!(company.told(), 1);
        companies.join(KEY, id(2), 0);
        assert_eq!(company.next().await, 2);
        let told_at = Instant::now();
        for consumer in 3..100 {
            companies.join(KEY, id(consumer), 0);
        }
        assert_eq!(company.next().await, 99);
        assert!(told_at.elapsed() >= TOLD_INTERVAL);
        companies.leave(KEY, id(1_000), 0);
        assert_eq!(company.next().now_or_never(), None, "nothing has changed");
    }

    #[tokio::test]
    async fn those_count_who_may_still_come_back() {
        let id = ConsumerId::new;
        let mut companies = Companies::default();
        let mut company = companies.join(KEY, id(1), 3);
        assert_eq!(company.told(), 3);
        companies.join(KEY, id(2), 3);
        companies.wait_for_nobody(KEY);
        assert_eq!(company.next().await, 2);
        for consumer in [1, 2] {
            companies.leave(KEY, id(consumer), 0);
        }
        assert!(companies.0.is_empty());
        companies.join(KEY, id(1), 0);
        companies.end_all(KEY.queue);
        assert!(companies.0.is_empty());
    }
}
