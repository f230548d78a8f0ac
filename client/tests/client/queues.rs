//! How the nodes keep queues and groups.

use skein_proto::broker::{self, Reason, position, queues_server};
use tonic::{Code, Request, Response, Status};

use super::cluster::{Batch, Group, Node, Queue, SHARD, published_at_ms, status};

#[tonic::async_trait]
impl queues_server::Queues for Node {
    async fn create_queue(
        &self,
        request: Request<broker::CreateQueueRequest>,
    ) -> Result<Response<broker::CreateQueueResponse>, Status> {
        let broker::CreateQueueRequest { name, settings, .. } = request.into_inner();
        let settings = settings.unwrap_or_default();
        let created = {
            let mut state = self.shared.state();
            let created = !state.queues.contains_key(&name);
            let queue = state
                .queues
                .entry(name.clone())
                .or_insert_with(|| Queue { settings: settings.clone(), ..Queue::default() });
            if queue.settings != settings {
                return Err(status(Code::AlreadyExists, Reason::QueueExists, "it has other settings"));
            }
            created
        };
        let queue = self.shared.queue(&name, |queue| describe(&name, queue))?;
        Ok(Response::new(broker::CreateQueueResponse { queue: Some(queue), created }))
    }

    async fn get_queue(
        &self,
        request: Request<broker::GetQueueRequest>,
    ) -> Result<Response<broker::GetQueueResponse>, Status> {
        let name = request.into_inner().name;
        let queue = self.shared.queue(&name, |queue| describe(&name, queue))?;
        Ok(Response::new(broker::GetQueueResponse { queue: Some(queue) }))
    }

    async fn update_queue(
        &self,
        request: Request<broker::UpdateQueueRequest>,
    ) -> Result<Response<broker::UpdateQueueResponse>, Status> {
        let broker::UpdateQueueRequest { name, settings, update_fields } = request.into_inner();
        let settings = settings.unwrap_or_default();
        let queue = self.shared.queue(&name, |queue| {
            for field in &update_fields {
                update(&mut queue.settings, &settings, field)?;
            }
            if update_fields.is_empty() {
                queue.settings = settings;
            }
            Ok::<_, Status>(describe(&name, queue))
        })??;
        Ok(Response::new(broker::UpdateQueueResponse { queue: Some(queue) }))
    }

    async fn list_queues(
        &self,
        request: Request<broker::ListQueuesRequest>,
    ) -> Result<Response<broker::ListQueuesResponse>, Status> {
        let broker::ListQueuesRequest { prefix, after, .. } = request.into_inner();
        let state = self.shared.state();
        // Pages of two, so that a test with three queues sees two of them.
        let mut queues: Vec<_> = state
            .queues
            .iter()
            .filter(|(name, _)| name.starts_with(&prefix) && **name > after)
            .map(|(name, queue)| describe(name, queue))
            .take(3)
            .collect();
        let more = queues.len() > 2;
        queues.truncate(2);
        Ok(Response::new(broker::ListQueuesResponse { queues, more }))
    }

    async fn delete_queue(
        &self,
        request: Request<broker::DeleteQueueRequest>,
    ) -> Result<Response<broker::DeleteQueueResponse>, Status> {
        let name = request.into_inner().name;
        let deleted = self.shared.queue(&name, |_| ());
        self.shared.state().queues.remove(&name);
        deleted.map(|()| Response::new(broker::DeleteQueueResponse {}))
    }

    async fn purge_queue(
        &self,
        request: Request<broker::PurgeQueueRequest>,
    ) -> Result<Response<broker::PurgeQueueResponse>, Status> {
        let purged = self.shared.queue(&request.into_inner().name, |queue| {
            let purged = queue.messages().count() as u64;
            let next_offset = queue.next_offset();
            queue.batches = vec![Batch { first_offset: next_offset, messages: Vec::new() }];
            purged
        })?;
        Ok(Response::new(broker::PurgeQueueResponse { purged_messages: purged }))
    }

    async fn create_group(
        &self,
        request: Request<broker::CreateGroupRequest>,
    ) -> Result<Response<broker::CreateGroupResponse>, Status> {
        let broker::CreateGroupRequest { queue, group, position, filter, .. } = request.into_inner();
        let created = self.shared.queue(&queue, |queue| {
            if queue.groups.contains_key(&group) {
                return Ok::<_, Status>(false);
            }
            let start = locate(queue, position)?;
            queue.groups.insert(group, Group { filter, ..Group::at(start) });
            Ok(true)
        })??;
        Ok(Response::new(broker::CreateGroupResponse { created }))
    }

    async fn update_group(
        &self,
        request: Request<broker::UpdateGroupRequest>,
    ) -> Result<Response<broker::UpdateGroupResponse>, Status> {
        let broker::UpdateGroupRequest { queue, group, filter } = request.into_inner();
        let updated = self.shared.queue(&queue, |queue| {
            let messages = queue.next_offset();
            let found = queue.groups.get_mut(&group)?;
            found.filter = filter;
            Some(describe_group(&group, found, messages))
        })?;
        let group = updated.ok_or_else(group_not_found)?;
        Ok(Response::new(broker::UpdateGroupResponse { group: Some(group) }))
    }

    async fn seek_group(
        &self,
        request: Request<broker::SeekGroupRequest>,
    ) -> Result<Response<broker::SeekGroupResponse>, Status> {
        let broker::SeekGroupRequest { queue, group, position } = request.into_inner();
        if let Some(refusal) = self.shared.state().seek_refusals.pop() {
            return Err(refusal);
        }
        let offset = self.shared.queue(&queue, |queue| {
            let offset = locate(queue, position)?;
            let found = queue.groups.get_mut(&group).ok_or_else(group_not_found)?;
            *found = Group { filter: found.filter.take(), ..Group::at(offset) };
            Ok::<_, Status>(offset)
        })??;
        self.shared.announce();
        Ok(Response::new(broker::SeekGroupResponse { offset }))
    }

    async fn delete_group(
        &self,
        request: Request<broker::DeleteGroupRequest>,
    ) -> Result<Response<broker::DeleteGroupResponse>, Status> {
        let broker::DeleteGroupRequest { queue, group } = request.into_inner();
        match self.shared.queue(&queue, |queue| queue.groups.remove(&group))? {
            Some(_) => Ok(Response::new(broker::DeleteGroupResponse {})),
            None => Err(group_not_found()),
        }
    }

    async fn get_group(
        &self,
        request: Request<broker::GetGroupRequest>,
    ) -> Result<Response<broker::GetGroupResponse>, Status> {
        let broker::GetGroupRequest { queue, group } = request.into_inner();
        let described = self.shared.queue(&queue, |queue| {
            let messages = queue.next_offset();
            queue.groups.get(&group).map(|found| describe_group(&group, found, messages))
        })?;
        let group = described.ok_or_else(group_not_found)?;
        Ok(Response::new(broker::GetGroupResponse { group: Some(group) }))
    }
}

fn group_not_found() -> Status {
    status(Code::NotFound, Reason::GroupNotFound, "there is no such group")
}

fn update(
    settings: &mut broker::QueueSettings,
    new: &broker::QueueSettings,
    field: &str,
) -> Result<(), Status> {
    match field {
        "max_deliveries" => settings.max_deliveries = new.max_deliveries,
        "dead_letter_queue" => settings.dead_letter_queue.clone_from(&new.dead_letter_queue),
        "lease_ms" => settings.lease_ms = new.lease_ms,
        "redelivery_delay_ms" => settings.redelivery_delay_ms = new.redelivery_delay_ms,
        "redelivery_delay_max_ms" => settings.redelivery_delay_max_ms = new.redelivery_delay_max_ms,
        "redelivery_delay_multiplier" => {
            settings.redelivery_delay_multiplier = new.redelivery_delay_multiplier;
        }
        "retention" => settings.retention = new.retention,
        "max_age_ms" => settings.max_age_ms = new.max_age_ms,
        "max_messages" => settings.max_messages = new.max_messages,
        "max_bytes" => settings.max_bytes = new.max_bytes,
        "overflow" => settings.overflow = new.overflow,
        "message_ttl_ms" => settings.message_ttl_ms = new.message_ttl_ms,
        "order_by_key" => settings.order_by_key = new.order_by_key,
        "partitions" => settings.partitions = new.partitions,
        "dedup_window_ms" => settings.dedup_window_ms = new.dedup_window_ms,
        "single_active_consumer" => settings.single_active_consumer = new.single_active_consumer,
        "expires_ms" => settings.expires_ms = new.expires_ms,
        "lower_priority_percent" => settings.lower_priority_percent = new.lower_priority_percent,
        _ => {
            let sentence = format!("there is no setting {field}");
            return Err(status(Code::InvalidArgument, Reason::InvalidSetting, &sentence));
        }
    }
    Ok(())
}

/// The offset of a position.
fn locate(queue: &Queue, position: Option<broker::Position>) -> Result<u64, Status> {
    let next_offset = queue.next_offset();
    let offset = match position.and_then(|position| position.position) {
        Some(position::Position::Start(start)) if start == i32::from(broker::GroupStart::Next) => next_offset,
        Some(position::Position::Start(_)) => 0,
        Some(position::Position::Offset(offset)) => offset,
        Some(position::Position::TimeMs(time_ms)) => {
            (0..next_offset).find(|offset| published_at_ms(*offset) >= time_ms).unwrap_or(next_offset)
        }
        None => return Err(status(Code::InvalidArgument, Reason::InvalidPosition, "say where")),
    };
    match offset <= next_offset {
        true => Ok(offset),
        false => Err(status(Code::OutOfRange, Reason::InvalidPosition, "it is after the end of the queue")),
    }
}

fn describe(name: &str, queue: &Queue) -> broker::Queue {
    let messages = queue.next_offset();
    broker::Queue {
        name: name.to_owned(),
        queue_id: 1,
        shard_id: SHARD,
        settings: Some(queue.settings.clone()),
        leader_node_id: 1,
        counts: Some(broker::QueueCounts {
            first_offset: 0,
            next_offset: messages,
            messages: queue.messages().count() as u64,
            bytes: 0,
            groups: queue.groups.iter().map(|(name, group)| describe_group(name, group, messages)).collect(),
        }),
    }
}

fn describe_group(name: &str, group: &Group, messages: u64) -> broker::Group {
    let acked = group.acked.len() as u64;
    let unacked = messages - acked;
    broker::Group {
        name: name.to_owned(),
        unacked_messages: unacked,
        leased_messages: group.leased.len() as u64,
        returned_messages: group.returned.len() as u64,
        unacked_bytes: 100 * unacked,
        oldest_unacked_at_ms: if unacked > 0 { published_at_ms(acked) } else { 0 },
        filter: group.filter.clone(),
        ..broker::Group::default()
    }
}
