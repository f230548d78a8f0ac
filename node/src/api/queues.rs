//! Creating, listing and deleting queues and groups.

use std::{sync::Arc, time::Duration};

use skein_proto::{
    ids::NodeId,
    node::{
        CreateGroupRequest, CreateGroupResponse, CreateQueueRequest, CreateQueueResponse, DeleteGroupRequest,
        DeleteGroupResponse, DeleteQueueRequest, DeleteQueueResponse, GetGroupRequest, GetGroupResponse,
        GetQueueRequest, GetQueueResponse, Group as GroupInfo, GroupStart as StartRequest, ListQueuesRequest,
        ListQueuesResponse, PurgeQueueRequest, PurgeQueueResponse, Queue as QueueInfo, QueueCounts,
        QueueSettings, Reason,
    },
};
use tonic::{Code, Status};

use super::{
    Api,
    consume::{DURATION_MS_MAX, check_duration},
    names::{self, QueueRef},
    status,
};
use crate::{
    broker::{self, CatalogCommand, CatalogOutcome, Command, GroupStart, Outcome, Settings},
    dispatch::GroupKey,
    raft::{CommandOutcome, Proposed},
    shard::GroupCounts,
};

/// Deliveries of a message before it is given up, when the queue does not say. As elsewhere: high enough that only a
/// message that can never be handled gets there.
const MAX_DELIVERIES_DEFAULT: u32 = 20;

/// How long a consumer may hold a message, when the queue does not say.
const LEASE_MS_DEFAULT: u32 = 30_000;

/// The shortest lease. Anything shorter expires on its way to the consumer.
const LEASE_MS_MIN: u32 = 100;

/// Queues in one page of a list.
const PAGE_MAX: u32 = 1_000;

/// How long creating a queue waits for its shard to open it.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(10);

impl Api {
    /// Creates a queue. This node leads the catalog.
    pub(super) async fn create_queue(
        &self,
        request: CreateQueueRequest,
    ) -> Result<CreateQueueResponse, Status> {
        names::check_queue_name(&request.name)?;
        let settings = check_settings(&request.name, request.settings.unwrap_or_default())?;
        let command = CatalogCommand::CreateQueue {
            name: request.name.clone(),
            settings: settings.clone(),
            shard_count: self.shard_count,
        };
        let (id, shard, created) = match self.propose_to_catalog(&command).await? {
            CatalogOutcome::Created { queue, shard } => (queue, shard, true),
            CatalogOutcome::Exists { queue, shard } => (queue, shard, false),
            outcome => return Err(refused_by_catalog(&outcome, &request.name, &settings)),
        };
        let queue = QueueRef { name: request.name, id, shard, settings };
        self.wait_open(&queue).await?;
        Ok(CreateQueueResponse { queue: Some(self.describe(&queue).await), created })
    }

    /// Deletes a queue. This node leads the catalog.
    pub(super) async fn delete_queue(
        &self,
        request: DeleteQueueRequest,
    ) -> Result<DeleteQueueResponse, Status> {
        names::check_queue_name(&request.name)?;
        let command = CatalogCommand::DeleteQueue { name: request.name.clone() };
        match self.propose_to_catalog(&command).await? {
            CatalogOutcome::Deleted { .. } => Ok(DeleteQueueResponse {}),
            CatalogOutcome::NotFound => Err(status::queue_not_found(&request.name)),
            CatalogOutcome::InUse { by } => {
                let name = request.name;
                let message = format!(
                    "queue {name:?} is the dead-letter queue of {by:?}; delete that one first, or keep \
                    this one"
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
                .map(|(name, queue)| QueueRef {
                    name: name.to_owned(),
                    id: queue.queue,
                    shard: queue.shard,
                    settings: queue.settings.clone(),
                })
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

    /// Creates a group of a queue whose shard this node leads.
    pub(super) async fn create_group(
        &self,
        queue: &QueueRef,
        request: CreateGroupRequest,
    ) -> Result<CreateGroupResponse, Status> {
        names::check_group_name(&request.group)?;
        self.ensure_open(queue).await?;
        let start = match StartRequest::try_from(request.start) {
            Ok(StartRequest::First) => GroupStart::First,
            Ok(StartRequest::Next) => GroupStart::Next,
            Err(_) => return Err(status::invalid_setting("start is neither the first nor the next message")),
        };
        match self
            .propose(queue, Command::CreateGroup { queue: queue.id, name: request.group, start })
            .await?
        {
            Outcome::GroupCreated { created, .. } => Ok(CreateGroupResponse { created }),
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// Deletes a group of a queue whose shard this node leads.
    pub(super) async fn delete_group(
        &self,
        queue: &QueueRef,
        request: DeleteGroupRequest,
    ) -> Result<DeleteGroupResponse, Status> {
        let group = self.find_group(queue, &request.group)?;
        match self.propose(queue, Command::DeleteGroup { queue: queue.id, group }).await? {
            // Somebody else deleted it a moment ago: the caller has what it wants.
            Outcome::GroupDeleted | Outcome::GroupNotFound => Ok(DeleteGroupResponse {}),
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// Describes a group of a queue whose shard this node leads.
    pub(super) async fn get_group(
        &self,
        queue: &QueueRef,
        request: GetGroupRequest,
    ) -> Result<GetGroupResponse, Status> {
        self.find_group(queue, &request.group)?;
        let described = self.describe(queue).await;
        let groups = described.counts.unwrap_or_default().groups;
        let group = groups.into_iter().find(|group| group.name == request.group);
        Ok(GetGroupResponse {
            group: Some(group.ok_or_else(|| status::group_not_found(&queue.name, &request.group))?),
        })
    }

    /// A queue with what only the leader knows.
    async fn describe(&self, queue: &QueueRef) -> QueueInfo {
        let mut described = self.describe_locally(queue);
        let delivery = self.shards.get(queue.shard).and_then(|server| server.delivery().borrow().clone());
        if let (Some(delivery), Some(counts)) = (delivery, &mut described.counts) {
            for group in &mut counts.groups {
                if let Ok(id) = self.find_group(queue, &group.name) {
                    let GroupCounts { leased_messages, consumers } =
                        delivery.counts(GroupKey { queue: queue.id, group: id }).await;
                    group.leased_messages = leased_messages;
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
            settings: Some(QueueSettings {
                max_deliveries: queue.settings.max_deliveries,
                dead_letter_queue: queue.settings.dead_letter_queue.clone().unwrap_or_default(),
                lease_ms: queue.settings.lease_ms,
            }),
            leader_node_id: leader.map_or(0, NodeId::get),
            counts: Some(counts.unwrap_or_default()),
        }
    }

    async fn propose_to_catalog(&self, command: &CatalogCommand) -> Result<CatalogOutcome, Status> {
        let outcome = self.groups.catalog().propose(Proposed::catalog(command)).await;
        match outcome.map_err(status::from_propose)? {
            CommandOutcome::Catalog(outcome) => Ok(outcome),
            CommandOutcome::Shard(outcome) => unreachable!("the catalog answered {outcome:?}"),
        }
    }

    /// Waits until the queue is open on this node's replica of its shard; the shard's leader opens it as soon as its
    /// own catalog tells it to.
    async fn wait_open(&self, queue: &QueueRef) -> Result<(), Status> {
        let replica = Arc::clone(self.group(queue.shard)?.replica());
        let mut applied = replica.applied_index();
        let opened = async {
            while !replica.with_messages(|shard| shard.queue(queue.id).is_some()) {
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(OPEN_WAIT_MAX, opened).await.map_err(|_| {
            let message = format!(
                "queue {:?} is created, but shard {} has no leader to open it; it opens by itself once \
                there is one",
                queue.name, queue.shard
            );
            status::status(Code::Unavailable, Reason::NoLeader, message)
        })
    }
}

fn counts(queue: &broker::Queue) -> QueueCounts {
    QueueCounts {
        first_offset: queue.first_offset().get(),
        next_offset: queue.next_offset().get(),
        messages: queue.message_count(),
        bytes: queue.kept_bytes(),
        groups: queue.groups().map(|group| group_info(queue, group)).collect(),
    }
}

fn group_info(queue: &broker::Queue, group: &broker::Group) -> GroupInfo {
    GroupInfo {
        name: group.name().to_owned(),
        acked_floor: group.acked_floor().get(),
        unacked_messages: group.unacked_count(queue.next_offset()),
        returned_messages: group.returned_count(),
        dead_lettered_total: group.dead_lettered_total(),
        dropped_total: group.dropped_total(),
        leased_messages: 0,
        consumers: 0,
    }
}

fn check_settings(name: &str, settings: QueueSettings) -> Result<Settings, Status> {
    let QueueSettings { max_deliveries, dead_letter_queue, lease_ms } = settings;
    let lease_ms = if lease_ms == 0 { LEASE_MS_DEFAULT } else { check_duration("lease_ms", lease_ms)? };
    if lease_ms < LEASE_MS_MIN {
        let message =
            format!("lease_ms is {lease_ms}; give {LEASE_MS_MIN} to {DURATION_MS_MAX}, or 0 for the default");
        return Err(status::invalid_setting(message));
    }
    if !dead_letter_queue.is_empty() {
        names::check_queue_name(&dead_letter_queue)?;
        if dead_letter_queue == name {
            let message = format!("dead_letter_queue is the queue {name:?} itself; name another one");
            return Err(status::invalid_setting(message));
        }
    }
    Ok(Settings {
        max_deliveries: if max_deliveries == 0 { MAX_DELIVERIES_DEFAULT } else { max_deliveries },
        dead_letter_queue: (!dead_letter_queue.is_empty()).then_some(dead_letter_queue),
        lease_ms,
    })
}

fn refused_by_catalog(outcome: &CatalogOutcome, name: &str, asked: &Settings) -> Status {
    let dead_letter_queue = asked.dead_letter_queue.as_deref().unwrap_or_default();
    match outcome {
        CatalogOutcome::ExistsDifferent { settings, .. } => status::status(
            Code::AlreadyExists,
            Reason::QueueExists,
            format!(
                "queue {name:?} exists with other settings (max_deliveries {}, dead_letter_queue {:?}, \
                lease_ms {}); \
                 use those, or delete it first",
                settings.max_deliveries,
                settings.dead_letter_queue.as_deref().unwrap_or_default(),
                settings.lease_ms
            ),
        ),
        CatalogOutcome::DeadLetterQueueNotFound => status::status(
            Code::NotFound,
            Reason::QueueNotFound,
            format!("dead_letter_queue {dead_letter_queue:?} does not exist; create it first"),
        ),
        CatalogOutcome::DeadLetterQueueCycle => status::invalid_setting(format!(
            "dead_letter_queue {dead_letter_queue:?} would send messages back to {name:?}; name one \
            that does not"
        )),
        outcome => unreachable!("creating a queue came out as {outcome:?}"),
    }
}
