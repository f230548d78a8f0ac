//! From names to ids, by the catalog on this node; when it does not know a queue, by asking the catalog's leader
//! whether it lags.

use std::time::Duration;

use skein_proto::{
    ids::{GroupId, QueueId, ShardId},
    limits, partitions,
};
use tonic::Status;

use super::{Api, status};
use crate::{
    broker::{CatalogQueue, Queue, Settings},
    raft,
};

/// How long a lookup waits for this node's catalog to catch up with its leader's.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// A queue as the catalog knows it.
#[derive(Debug, Clone)]
pub(super) struct QueueRef {
    pub name: String,
    pub id: QueueId,
    pub shard: ShardId,
    pub settings: Settings,
    /// The catalog's revision when it took its settings.
    pub settings_revision: u64,
}

/// What messages are published to.
pub(super) enum Destination {
    Queue(QueueRef),
    Topic,
}

impl QueueRef {
    pub(super) fn new(name: &str, queue: &CatalogQueue) -> Self {
        Self {
            name: name.to_owned(),
            id: queue.queue,
            shard: queue.shard,
            settings: queue.settings.clone(),
            settings_revision: queue.settings_revision,
        }
    }

    /// The queue that this is a partition of, and its number; nothing when it is none.
    pub(super) fn as_partition(&self) -> Option<(&str, u32)> {
        partitions::parse(&self.name).filter(|_| self.settings.partitions > 0)
    }
}

impl Api {
    /// Looks up a queue that must exist.
    pub(super) async fn find_queue(&self, name: &str) -> Result<QueueRef, Status> {
        check_queue_name(name)?;
        if let Some(queue) = self.known_queue(name) {
            return Ok(queue);
        }
        let knows_all = self.catch_up_catalog().await;
        self.known_queue(name).ok_or_else(|| {
            match (self.known_partitions(name), self.known_destination(name)) {
                (Some(partitions), _) => status::is_partitioned(name, partitions),
                (None, Some(Destination::Topic)) => status::is_a_topic(name),
                _ if knows_all => status::queue_not_found(name),
                _ => status::may_not_have_heard_of(name),
            }
        })
    }

    /// Looks up what messages are to be published to, which must exist.
    pub(super) async fn find_destination(&self, name: &str) -> Result<Destination, Status> {
        check_queue_name(name)?;
        if let Some(known) = self.known_destination(name) {
            return Ok(known);
        }
        let knows_all = self.catch_up_catalog().await;
        self.known_destination(name).ok_or_else(|| match self.known_partitions(name) {
            Some(partitions) => status::is_partitioned(name, partitions),
            None if knows_all => status::destination_not_found(name),
            None => status::may_not_have_heard_of(name),
        })
    }

    pub(super) fn known_destination(&self, name: &str) -> Option<Destination> {
        if let Some(queue) = self.known_queue(name) {
            return Some(Destination::Queue(queue));
        }
        let catalog = self.groups.catalog().replica();
        catalog.with_catalog(|catalog| catalog.topic(name).map(|_| Destination::Topic))
    }

    /// Looks up a queue in what this node's catalog has seen.
    pub(super) fn known_queue(&self, name: &str) -> Option<QueueRef> {
        let catalog = self.groups.catalog().replica();
        catalog.with_catalog(|catalog| Some(QueueRef::new(name, catalog.queue(name)?)))
    }

    /// Reads a queue in this node's replica of its shard, which may not have heard of it yet. Nothing when the catalog
    /// here has not.
    pub(super) fn with_known_queue<T>(
        &self,
        name: &str,
        read: impl FnOnce(Option<&Queue>) -> T,
    ) -> Option<T> {
        let queue = self.known_queue(name)?;
        let replica = self.groups.get(queue.shard)?.replica();
        Some(replica.with_messages(|shard| read(shard.queue(queue.id))))
    }

    /// Waits until this node's catalog has everything that was confirmed before the call, or for a while. Says whether
    /// it has: what is not in it does not exist then.
    pub(super) async fn catch_up_catalog(&self) -> bool {
        let catch_up = async {
            let catalog = self.groups.catalog();
            let index = self.read_index(catalog).await?;
            catalog.replica().wait_applied(index).await;
            Some(())
        };
        // Without a leader to ask, what this node knows is the best answer there is.
        matches!(tokio::time::timeout(CATCH_UP_MAX, catch_up).await, Ok(Some(())))
    }

    /// How far a replica here must have come to have everything that was confirmed before the call, as its group's
    /// leader says; nothing when there is none to ask.
    pub(super) async fn read_index(&self, group: &raft::Group) -> Option<u64> {
        let leader = group.leadership().borrow().leader?;
        if leader == self.node {
            return group.read_index().await;
        }
        self.transport.read_index(leader, group.shard()).await.ok()
    }

    /// Looks up a group of a queue on this node, which should lead the queue's shard.
    pub(super) fn find_group(&self, queue: &QueueRef, name: &str) -> Result<GroupId, Status> {
        check_group_name(name)?;
        let group = self.groups.get(queue.shard).and_then(|group| {
            group.replica().with_messages(|shard| Some(shard.queue(queue.id)?.group_by_name(name)?.id()))
        });
        group.ok_or_else(|| status::group_not_found(&queue.name, name))
    }
}

pub(super) fn check_queue_name(name: &str) -> Result<(), Status> {
    check_name("queue", name)
}

pub(super) fn check_topic_name(name: &str) -> Result<(), Status> {
    check_name("topic", name)
}

pub(super) fn check_group_name(name: &str) -> Result<(), Status> {
    check_name("group", name)
}

fn check_name(kind: &str, name: &str) -> Result<(), Status> {
    if limits::is_valid_name(name) { Ok(()) } else { Err(status::invalid_name(kind, name)) }
}
