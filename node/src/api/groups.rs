//! Creating, moving, looking at and deleting consumer groups.

use std::time::Duration;

use skein_proto::{
    ids::Offset,
    node::{
        CreateGroupRequest, CreateGroupResponse, DeleteGroupRequest, DeleteGroupResponse, GetGroupRequest,
        GetGroupResponse, Group as GroupInfo, GroupStart, Position as PositionRequest, Reason,
        SeekGroupRequest, SeekGroupResponse, UpdateGroupRequest, UpdateGroupResponse,
        position::Position as Choice,
    },
};
use tonic::{Code, Status};

use super::{
    Api, filter,
    names::{self, QueueRef},
    status,
};
use crate::broker::{Command, Group, Outcome, Position, Queue};

/// How long moving a group waits for its dead letters to be moved.
const DEAD_LETTERS_WAIT_MAX: Duration = Duration::from_secs(2);

/// How often it looks.
const DEAD_LETTERS_WAIT_STEP: Duration = Duration::from_millis(20);

impl Api {
    /// Creates a group of a queue whose shard this node leads.
    pub(super) async fn create_group(
        &self,
        queue: &QueueRef,
        request: CreateGroupRequest,
    ) -> Result<CreateGroupResponse, Status> {
        names::check_group_name(&request.group)?;
        let start = match request.position {
            Some(position) => check_position(position)?,
            None => check_start(request.start)?,
        };
        let filter = filter::encode(request.filter.as_ref())?;
        self.ensure_open(queue).await?;
        match self
            .propose(queue, Command::CreateGroup { queue: queue.id, name: request.group, start, filter })
            .await?
        {
            Outcome::GroupCreated { created, .. } => Ok(CreateGroupResponse { created }),
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// Sets which messages a group wants, of a queue whose shard this node leads.
    pub(super) async fn update_group(
        &self,
        queue: &QueueRef,
        request: UpdateGroupRequest,
    ) -> Result<UpdateGroupResponse, Status> {
        let filter = filter::encode(request.filter.as_ref())?;
        self.ensure_open(queue).await?;
        let group = self.find_group(queue, &request.group)?;
        match self.propose(queue, Command::UpdateGroup { queue: queue.id, group, filter }).await? {
            Outcome::GroupUpdated => {
                let group = self.describe_group(queue, &request.group).await?;
                Ok(UpdateGroupResponse { group: Some(group) })
            }
            Outcome::GroupNotFound => Err(status::group_not_found(&queue.name, &request.group)),
            outcome => Err(status::from_outcome(&outcome, &queue.name)),
        }
    }

    /// Lets a group of a queue whose shard this node leads go on from elsewhere.
    pub(super) async fn seek_group(
        &self,
        queue: &QueueRef,
        request: SeekGroupRequest,
    ) -> Result<SeekGroupResponse, Status> {
        let to = check_position(request.position.unwrap_or_default())?;
        self.ensure_open(queue).await?;
        let group = self.find_group(queue, &request.group)?;
        let waited = tokio::time::Instant::now() + DEAD_LETTERS_WAIT_MAX;
        loop {
            match self.propose(queue, Command::SeekGroup { queue: queue.id, group, to }).await? {
                Outcome::GroupMoved { offset } => return Ok(SeekGroupResponse { offset: offset.get() }),
                Outcome::DeadLettersPending if tokio::time::Instant::now() < waited => {
                    tokio::time::sleep(DEAD_LETTERS_WAIT_STEP).await;
                }
                Outcome::GroupNotFound => return Err(status::group_not_found(&queue.name, &request.group)),
                outcome => return Err(status::from_outcome(&outcome, &queue.name)),
            }
        }
    }

    /// Deletes a group of a queue whose shard this node leads.
    pub(super) async fn delete_group(
        &self,
        queue: &QueueRef,
        request: DeleteGroupRequest,
    ) -> Result<DeleteGroupResponse, Status> {
        self.ensure_open(queue).await?;
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
        self.ensure_open(queue).await?;
        self.find_group(queue, &request.group)?;
        let group = self.describe_group(queue, &request.group).await?;
        Ok(GetGroupResponse { group: Some(group) })
    }

    async fn describe_group(&self, queue: &QueueRef, name: &str) -> Result<GroupInfo, Status> {
        let described = self.describe(queue).await;
        let groups = described.counts.unwrap_or_default().groups;
        let group = groups.into_iter().find(|group| group.name == name);
        group.ok_or_else(|| status::group_not_found(&queue.name, name))
    }
}

/// What every replica knows of a group.
pub(super) fn describe(queue: &Queue, group: &Group) -> GroupInfo {
    let has_caught_up = group.unacked_count(queue.next_offset()) == 0;
    GroupInfo {
        name: group.name().to_owned(),
        acked_floor: group.acked_floor().get(),
        unacked_messages: group.unacked_count(queue.next_offset()),
        returned_messages: group.returned_count(),
        dead_lettered_total: group.dead_lettered_total(),
        dropped_total: group.dropped_total(),
        unacked_bytes: if has_caught_up { 0 } else { queue.unacked_bytes(group) },
        oldest_unacked_at_ms: if has_caught_up { None } else { queue.oldest_unacked_at_ms(group) }
            .unwrap_or_default(),
        filter: group.filter().and_then(|kept| filter::decode(kept)),
        leased_messages: 0,
        delayed_messages: 0,
        consumers: 0,
    }
}

fn check_start(start: i32) -> Result<Position, Status> {
    match GroupStart::try_from(start) {
        Ok(GroupStart::First) => Ok(Position::First),
        Ok(GroupStart::Next) => Ok(Position::Next),
        Err(_) => Err(status::invalid_setting("start is neither the first nor the next message")),
    }
}

fn check_position(position: PositionRequest) -> Result<Position, Status> {
    match position.position {
        Some(Choice::Start(start)) => check_start(start),
        Some(Choice::Offset(offset)) => Ok(Position::Offset(Offset::new(offset))),
        Some(Choice::TimeMs(time_ms)) => Ok(Position::Time(time_ms)),
        None => {
            let message = "position is not given; give a start, an offset or a time_ms";
            Err(status::status(Code::InvalidArgument, Reason::InvalidPosition, message))
        }
    }
}
