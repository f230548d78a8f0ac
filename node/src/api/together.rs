//! Publishing to several queues of one shard at once: all of it is stored, or nothing.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use skein_proto::{
    ids::{ProducerId, Sequence},
    limits::{self, TOGETHER_QUEUES_MAX},
    node::{Confirm, Reason, SendRequest, SendResponse},
};
use tonic::{Code, Status};

use super::{Api, names::QueueRef, status};
use crate::{
    batch::{self, Checked, MessageLimits},
    broker::{self, Outcome, PublishedBatch},
    raft::{CommandOutcome, ProposeError, Proposed},
};

impl Api {
    /// Publishes a batch to each of several queues, of which this is the first and whose shard this node leads.
    pub(super) async fn send_together(
        &self,
        first: &QueueRef,
        request: SendRequest,
    ) -> Result<SendResponse, Status> {
        let SendRequest { producer_id, sequence, ignore_message_ids, partitions, .. } = request;
        if partitions != 0 {
            return Err(status::invalid_setting(
                "partitions is not looked at with batches for several queues; leave it out",
            ));
        }
        let queues = self.queues_together(first, &request).await?;
        let batches = [request.batch].into_iter().chain(request.also.into_iter().map(|also| also.batch));
        let mut parts = Vec::with_capacity(queues.len());
        let mut bytes = 0;
        for (queue, batch) in queues.iter().zip(batches) {
            self.ensure_open(queue).await?;
            bytes += batch.len();
            parts.push(self.part(queue, batch, ignore_message_ids)?);
        }
        let messages: usize = parts.iter().map(|(_, count, ..)| *count as usize).sum();
        if bytes > limits::BATCH_BYTES_MAX || messages > limits::BATCH_MESSAGES_MAX {
            // They are one entry, which peers must be able to take.
            let (bytes_max, messages_max) = (limits::BATCH_BYTES_MAX, limits::BATCH_MESSAGES_MAX);
            let message = format!(
                "the batches have {bytes} bytes and {messages} messages together; {bytes_max} and {messages_max} are \
                 the most, send fewer at once"
            );
            return Err(status::status(Code::InvalidArgument, Reason::BatchTooLarge, message));
        }
        let group = Arc::clone(self.group(first.shard)?);
        let permit = self.admission.admit(bytes).await.map_err(status::from_over_budget)?;
        self.ensure_room(&group)?;
        let producer = (producer_id != 0).then(|| (ProducerId::new(producer_id), Sequence::new(sequence)));
        let proposed = Proposed::publish_together(producer, parts);
        let outcome = group.propose_later(proposed, Some(permit)).await;
        let outcome = outcome.await.unwrap_or(Err(ProposeError::OutcomeUnknown));
        match outcome.map_err(status::from_propose)? {
            CommandOutcome::Shard(Outcome::PublishedTogether { batches, duplicate }) => {
                let mut confirms = batches.into_iter().map(|PublishedBatch { first, count }| Confirm {
                    sequence,
                    first_offset: first.get(),
                    count,
                    duplicate,
                    ..Confirm::default()
                });
                Ok(SendResponse { confirm: confirms.next(), also: confirms.collect() })
            }
            CommandOutcome::Shard(Outcome::RefusedTogether { place, because }) => {
                let queue = queues.get(place).map_or("", |queue| &queue.name);
                Err(status::from_outcome(&because, queue))
            }
            outcome => unreachable!("publishing to several queues came out as {outcome:?}"),
        }
    }

    /// The queues that a call publishes to, which must be different ones in the same shard.
    async fn queues_together(
        &self,
        first: &QueueRef,
        request: &SendRequest,
    ) -> Result<Vec<QueueRef>, Status> {
        if request.also.len() >= TOGETHER_QUEUES_MAX {
            let message = format!(
                "the call is for {} queues; {TOGETHER_QUEUES_MAX} are the most",
                request.also.len() + 1
            );
            return Err(status::invalid_setting(message));
        }
        let mut names = BTreeSet::from([first.name.as_str()]);
        let mut queues = vec![first.clone()];
        for also in &request.also {
            let queue = self.find_queue(&also.queue).await?;
            if !names.insert(&also.queue) {
                let message =
                    format!("queue {:?} is named twice; put its messages into one batch", also.queue);
                return Err(status::invalid_setting(message));
            }
            if queue.shard != first.shard {
                let message = format!(
                    "queue {:?} is in shard {}, and {:?} in shard {}: they cannot be published to at once. Queues that \
                     can are created so (skein queue create --colocated-with {})",
                    first.name, first.shard, queue.name, queue.shard, first.name
                );
                return Err(status::status(Code::FailedPrecondition, Reason::NotColocated, message));
            }
            queues.push(queue);
        }
        Ok(queues)
    }

    /// What is proposed for one of the queues.
    fn part(
        &self,
        queue: &QueueRef,
        batch: Bytes,
        ignores_ids: bool,
    ) -> Result<(skein_proto::ids::QueueId, u32, Bytes, Vec<broker::BatchRun>), Status> {
        let (by_key, dedups) = self.group(queue.shard)?.replica().with_messages(|shard| {
            let settings = shard.queue(queue.id).map(broker::Queue::settings);
            settings.map_or((false, false), |queue| (queue.order_by_key, queue.dedup_window_ms.is_some()))
        });
        if dedups && !ignores_ids {
            let message = format!(
                "queue {:?} looks at the ids of messages (dedup_window_ms), which is not done with batches for several \
                 queues; set ignore_message_ids, or publish to it by itself",
                queue.name
            );
            return Err(status::invalid_setting(message));
        }
        let message_limits = MessageLimits {
            bytes_max: self.message_bytes_max,
            deliver_at_ms_max: self.clock.wall_ms() + limits::DELAY_MS_MAX,
            by_key,
            one_by_one: false,
        };
        let Checked { count, runs } = batch::check(&batch, &message_limits).map_err(status::from_batch)?;
        Ok((queue.id, count, batch, runs))
    }
}
