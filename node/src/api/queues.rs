//! Creating, changing, listing and deleting queues.

use std::{sync::Arc, time::Duration};

use futures::future;
use skein_proto::{
    ids::{NodeId, QueueId},
    node::{
        CreateQueueRequest, CreateQueueResponse, DeleteQueueRequest, DeleteQueueResponse, GetQueueRequest,
        GetQueueResponse, ListQueuesRequest, ListQueuesResponse, PurgeQueueRequest, PurgeQueueResponse,
        Queue as QueueInfo, QueueCounts, Reason, UpdateQueueRequest, UpdateQueueResponse,
    },
    partitions,
};
use tonic::{Code, Status};

use super::{
    Api, groups,
    names::{self, Destination, QueueRef},
    settings, status,
};
use crate::{
    broker::{self, CatalogCommand, CatalogOutcome, Command, Outcome, Settings},
    dispatch::GroupKey,
    raft::{CommandOutcome, Proposed},
    shard::GroupCounts,
};

/// How often changing a queue's settings begins anew because others change them too.
const UPDATES_MAX: u32 = 8;

/// Queues in one page of a list.
const PAGE_MAX: u32 = 1_000;

/// How long creating a queue waits for its shard to open it: longer than elections take, and not as long as clients
/// wait for a node's answer (3.3 s in `skein-client`), since this one says what is the matter.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(3);

impl Api {
    /// Creates a queue. This node leads the catalog.
    pub(super) async fn create_queue(
        &self,
        request: CreateQueueRequest,
    ) -> Result<CreateQueueResponse, Status> {
        names::check_queue_name(&request.name)?;
        let settings = settings::check(&request.name, request.settings.unwrap_or_default())?;
        let colocated_with = request.colocated_with;
        if !colocated_with.is_empty() && settings.partitions > 0 {
            let message = "colocated_with and partitions do not go together: partitions are in different shards; leave \
                           one of them out";
            return Err(status::invalid_setting(message));
        }
        let command = CatalogCommand::CreateQueue {
            name: request.name.clone(),
            settings: settings.clone(),
            shard_count: self.shard_count,
            colocated_with: Some(colocated_with.clone()).filter(|other| !other.is_empty()),
        };
        let created = match self.propose_to_catalog(&command).await? {
            CatalogOutcome::Created { .. } => true,
            CatalogOutcome::Exists { shard, .. } => {
                let other = self.known_queue(&colocated_with);
                if let Some(other) = other.filter(|other| other.shard != shard) {
                    return Err(status::exists_elsewhere(&request.name, shard, &other.name, other.shard));
                }
                false
            }
            CatalogOutcome::NotFound => {
                return Err(match self.known_partitions(&colocated_with) {
                    Some(partitions) => status::is_partitioned(&colocated_with, partitions),
                    None => status::queue_not_found(&colocated_with),
                });
            }
            outcome => return Err(self.refused_by_catalog(&outcome, &request.name, &settings)),
        };
        Ok(CreateQueueResponse { queue: Some(self.wait_all_open(&request.name).await?), created })
    }

    /// Lets a queue behave differently. This node leads the catalog.
    pub(super) async fn update_queue(
        &self,
        request: UpdateQueueRequest,
    ) -> Result<UpdateQueueResponse, Status> {
        names::check_queue_name(&request.name)?;
        let name = request.name;
        let given = request.settings.unwrap_or_default();
        for _ in 0..UPDATES_MAX {
            let expected = match self.known_parts(&name).into_iter().next() {
                Some(first) => first.settings,
                None => return Err(status::queue_not_found(&name)),
            };
            let merged =
                settings::merge(settings::to_wire(&expected), given.clone(), &request.update_fields)?;
            let settings = settings::check(&name, merged)?;
            let command = CatalogCommand::UpdateQueue {
                name: name.clone(),
                expected,
                settings: settings.clone(),
                shard_count: self.shard_count,
            };
            match self.propose_to_catalog(&command).await? {
                CatalogOutcome::Updated { .. } => {
                    return Ok(UpdateQueueResponse { queue: Some(self.wait_all_open(&name).await?) });
                }
                // Somebody else changed it meanwhile; what they changed is to stay, where this call does not name it.
                CatalogOutcome::NotAsExpected => {}
                CatalogOutcome::NotFound => return Err(status::queue_not_found(&name)),
                outcome => return Err(self.refused_by_catalog(&outcome, &name, &settings)),
            }
        }
        let message =
            format!("others keep changing the settings of queue {name:?}; nothing was changed, try again");
        Err(status::status(Code::Aborted, Reason::Busy, message))
    }

    /// Deletes a queue. This node leads the catalog.
    pub(super) async fn delete_queue(
        &self,
        request: DeleteQueueRequest,
    ) -> Result<DeleteQueueResponse, Status> {
        names::check_queue_name(&request.name)?;
        let queue = (request.queue_id != 0).then(|| QueueId::new(request.queue_id));
        let catalog = self.groups.catalog().replica();
        let was_bound = catalog.with_catalog(|catalog| catalog.is_bound(&request.name));
        let command = CatalogCommand::DeleteQueue { name: request.name.clone(), queue };
        match self.propose_to_catalog(&command).await? {
            CatalogOutcome::Deleted { .. } => {
                if was_bound {
                    self.tell_others().await;
                }
                Ok(DeleteQueueResponse {})
            }
            CatalogOutcome::NotFound => Err(match self.known_destination(&request.name) {
                Some(Destination::Topic) => status::is_a_topic(&request.name),
                _ => status::no_queue_to_delete(&request.name),
            }),
            CatalogOutcome::IsPartition { of } => Err(status::is_a_partition(&request.name, &of)),
            CatalogOutcome::InUseByTopic { by } => {
                let name = request.name;
                let message = format!(
                    "queue {name:?} is the alternate queue of topic {by:?}; take it away there first \
                     (skein topic update {by} --no-alternate), or delete that topic"
                );
                Err(status::status(Code::FailedPrecondition, Reason::QueueInUse, message))
            }
            CatalogOutcome::InUse { by } => {
                let name = request.name;
                let message = format!(
                    "queue {name:?} is the dead-letter queue of {by:?}; take it away there first \
                    (skein queue update {by} --clear dead-letter-queue), or delete that one"
                );
                Err(status::status(Code::FailedPrecondition, Reason::QueueInUse, message))
            }
            outcome => unreachable!("deleting a queue came out as {outcome:?}"),
        }
    }

    /// Describes a queue whose shard this node leads.
    pub(super) async fn get_queue(
        &self,
        queue: &QueueRef,
        _: GetQueueRequest,
    ) -> Result<GetQueueResponse, Status> {
        // Once a majority has confirmed that it leads, its state has all that was confirmed before.
        self.delivery(queue.shard).await?;
        Ok(GetQueueResponse { queue: Some(self.describe(queue).await) })
    }

    /// Lists queues from what this node has seen.
    pub(super) fn list_queues(&self, request: &ListQueuesRequest) -> ListQueuesResponse {
        let asked = if request.page_size == 0 { PAGE_MAX } else { request.page_size.min(PAGE_MAX) };
        let mut page: Vec<QueueRef> = self.groups.catalog().replica().with_catalog(|catalog| {
            catalog
                .queues_after(&request.after)
                .filter(|(name, _)| name.starts_with(&request.prefix))
                .take(asked as usize + 1)
                .map(|(name, queue)| QueueRef::new(name, queue))
                .collect()
        });
        let more = page.len() > asked as usize;
        page.truncate(asked as usize);
        let queues = page.iter().map(|queue| self.describe_locally(queue)).collect();
        ListQueuesResponse { queues, more }
    }

    /// Deletes the messages of a queue whose shard this node leads.
    pub(super) async fn purge_queue(
        &self,
        queue: &QueueRef,
        _: PurgeQueueRequest,
    ) -> Result<PurgeQueueResponse, Status> {
        self.ensure_open(queue).await?;
        match self.propose(queue, Command::PurgeQueue { queue: queue.id }).await? {
            Outcome::Purged { messages } => Ok(PurgeQueueResponse { purged_messages: messages }),
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// A queue with what only the leader knows.
    pub(super) async fn describe(&self, queue: &QueueRef) -> QueueInfo {
        let mut described = self.describe_locally(queue);
        let delivery = self.shards.get(queue.shard).and_then(|server| server.delivery().borrow().clone());
        if let (Some(delivery), Some(counts)) = (delivery, &mut described.counts) {
            for group in &mut counts.groups {
                if let Ok(id) = self.find_group(queue, &group.name) {
                    let GroupCounts { leased_messages, delayed_messages, consumers } =
                        delivery.counts(GroupKey { queue: queue.id, group: id }).await;
                    group.leased_messages = leased_messages;
                    group.delayed_messages = delayed_messages;
                    group.consumers = consumers;
                }
            }
        }
        described
    }

    fn describe_locally(&self, queue: &QueueRef) -> QueueInfo {
        let group = self.groups.get(queue.shard);
        let leader = group.and_then(|group| group.leadership().borrow().leader);
        let counts =
            group.and_then(|group| group.replica().with_messages(|shard| shard.queue(queue.id).map(counts)));
        QueueInfo {
            name: queue.name.clone(),
            queue_id: queue.id.get(),
            shard_id: queue.shard.get(),
            settings: Some(settings::to_wire(&queue.settings)),
            leader_node_id: leader.map_or(0, NodeId::get),
            counts: Some(counts.unwrap_or_default()),
        }
    }

    pub(super) async fn propose_to_catalog(
        &self,
        command: &CatalogCommand,
    ) -> Result<CatalogOutcome, Status> {
        let outcome = self.groups.catalog().propose(Proposed::catalog(command)).await;
        match outcome.map_err(status::from_propose)? {
            CommandOutcome::Catalog(outcome) => Ok(outcome),
            CommandOutcome::Shard(outcome) => unreachable!("the catalog answered {outcome:?}"),
        }
    }

    /// The queue of a name, or its partitions; nothing when there is none.
    fn known_parts(&self, name: &str) -> Vec<QueueRef> {
        let names = match self.known_partitions(name) {
            Some(count) => (0..count).map(|partition| partitions::name(name, partition)).collect(),
            None => vec![name.to_owned()],
        };
        names.iter().filter_map(|name| self.known_queue(name)).collect()
    }

    /// Waits until a queue, with all its partitions, is open with the settings that it has in this node's catalog, and
    /// describes it. Somebody may have deleted it since.
    async fn wait_all_open(&self, name: &str) -> Result<QueueInfo, Status> {
        let parts = self.known_parts(name);
        future::try_join_all(parts.iter().map(|part| self.wait_open(part))).await?;
        let described = match &parts[..] {
            [queue] if queue.name == name => Some(self.describe(queue).await),
            parts => super::partitions::describe(name, parts.iter().map(|part| self.describe_locally(part))),
        };
        described.ok_or_else(|| status::queue_not_found(name))
    }

    /// Waits until the queue is open with its settings on this node's replica of its shard; the shard's leader opens it
    /// as soon as its own catalog tells it to.
    async fn wait_open(&self, queue: &QueueRef) -> Result<(), Status> {
        let replica = Arc::clone(self.group(queue.shard)?.replica());
        let mut applied = replica.applied_index();
        let opened = async {
            let is_open = |open: &broker::Queue| open.settings_revision() >= queue.settings_revision;
            while !replica.with_messages(|shard| shard.queue(queue.id).is_some_and(is_open)) {
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(OPEN_WAIT_MAX, opened).await.map_err(|_| {
            let message = format!(
                "queue {:?} is created or changed, but shard {} has no leader to hear of it, or one that is cut off \
                 from the catalog's; it hears of it by itself once there is one, or see which nodes lack each other \
                 (skein cluster status)",
                queue.name, queue.shard
            );
            status::status(Code::Unavailable, Reason::OutcomeUnknown, message)
        })
    }
}

impl Api {
    fn refused_by_catalog(&self, outcome: &CatalogOutcome, name: &str, asked: &Settings) -> Status {
        let dead_letter_queue = asked.dead_letter_queue.as_deref().unwrap_or_default();
        match outcome {
            CatalogOutcome::ExistsDifferent { settings: existing, .. } => status::status(
                Code::AlreadyExists,
                Reason::QueueExists,
                format!(
                    "queue {name:?} exists with other settings: {}; use those, or change them (skein queue update \
                     {name})",
                    settings::differences(existing, asked)
                ),
            ),
            CatalogOutcome::NameTaken => {
                let message = format!("{name:?} is the name of a topic; give the queue another one");
                status::status(Code::AlreadyExists, Reason::TopicExists, message)
            }
            CatalogOutcome::DeadLetterQueueNotFound => status::status(
                Code::NotFound,
                Reason::QueueNotFound,
                format!("dead_letter_queue {dead_letter_queue:?} does not exist; create it first"),
            ),
            CatalogOutcome::IsPartition { of } => status::is_a_partition(name, of),
            CatalogOutcome::PartitionNameTaken { name: taken } => {
                let message = format!(
                    "{name:?} cannot have {} partitions: a queue or topic is called {taken:?}; delete that one, or \
                     have fewer",
                    asked.partitions
                );
                status::status(Code::AlreadyExists, Reason::QueueExists, message)
            }
            CatalogOutcome::PartitionsOnlyRise { partitions: 0 } => {
                let message = format!(
                    "queue {name:?} was created without partitions, and stays one queue; create another one with \
                     partitions, and publish and consume there"
                );
                status::invalid_setting(message)
            }
            CatalogOutcome::PartitionsOnlyRise { partitions } => {
                let message = format!(
                    "queue {name:?} has {partitions} partitions, and can only have more; give at least as many"
                );
                status::invalid_setting(message)
            }
            CatalogOutcome::DeadLetterQueueCycle => status::invalid_setting(format!(
                "dead_letter_queue {dead_letter_queue:?} would send messages back to {name:?}; name one \
                that does not"
            )),
            outcome => unreachable!("creating or changing a queue came out as {outcome:?}"),
        }
    }
}

fn counts(queue: &broker::Queue) -> QueueCounts {
    QueueCounts {
        first_offset: queue.first_offset().get(),
        next_offset: queue.next_offset().get(),
        messages: queue.message_count(),
        bytes: queue.kept_bytes(),
        groups: queue.groups().map(|group| groups::describe(queue, group)).collect(),
    }
}
