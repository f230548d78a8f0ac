//! Single calls to a partitioned queue, for clients that know nothing of partitions: each is made to one of them.

use std::{collections::BTreeMap, time::Duration};

use futures::future::BoxFuture;
use skein_proto::{
    node::{
        CreateGroupRequest, DeleteGroupRequest, DeleteGroupResponse, Reason, ReceiveRequest, ReceiveResponse,
        SendRequest, SendResponse, SettleRequest, SettleResponse, TokenFailure, broker_server::Broker as _,
        queues_server::Queues as _,
    },
    partitions,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use super::{
    Api,
    partitions::{GROWTHS_MAX, until_heard},
    receive::WAIT_MAX,
    services::{BrokerService, QueuesService},
    status,
};
use crate::{
    batch::{self, Fields},
    broker::Queue,
    random::random_u64,
};

/// How often a call that waits for a message looks whether there is one.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Stands between the number of a partition and what it calls a lease.
const TOKEN_SEPARATOR: char = '/';

/// Publishes a batch to one queue.
pub(super) type SendToOne<'a> =
    &'a (dyn Fn(SendRequest) -> BoxFuture<'a, Result<SendResponse, Status>> + Send + Sync);

impl Api {
    /// Publishes one batch, to the partition that its messages belong to; `send` publishes it there.
    pub(super) async fn send_to_partition(
        &self,
        request: SendRequest,
        send: SendToOne<'_>,
    ) -> Result<SendResponse, Status> {
        if request.producer_id != 0 && request.sequence != 1 {
            let message = "batches for a partitioned queue are in no sequence, since each goes to the partition of its \
                           key; give each a producer_id of its own, and sequence 1";
            return Err(status::status(Code::InvalidArgument, Reason::Partitioned, message));
        }
        // The same when it is sent again, so that whoever has it is found.
        let any = if request.producer_id == 0 { random_u64() } else { request.producer_id };
        until_heard(|| self.send_to_partition_of_now(&request, any, send)).await
    }

    /// Tries each number of partitions there has been, from the first to now: who has the batch already says so.
    async fn send_to_partition_of_now(
        &self,
        request: &SendRequest,
        any: u64,
        send: SendToOne<'_>,
    ) -> Result<SendResponse, Status> {
        let mut refused = status::partitions_changed(&request.queue);
        for _ in 0..GROWTHS_MAX {
            let mut counts = self.partition_counts(&request.queue)?;
            if request.producer_id == 0 {
                // It asks for no deduplication, so that nobody needs to be asked who may have it.
                counts = counts.split_off(counts.len().saturating_sub(1));
            }
            for partitions in counts {
                let partition = partition_of(request, partitions, any)?;
                let queue = partitions::name(&request.queue, partition);
                let of_partition = SendRequest { queue, partitions, ..request.clone() };
                match send(of_partition).await {
                    Err(status) if status::reason_of(&status) == Some(Reason::PartitionsChanged) => {
                        refused = status;
                    }
                    sent => return sent,
                }
            }
            self.catch_up_catalog().await;
        }
        Err(refused)
    }
}

impl BrokerService {
    /// Takes messages of whichever partition has some first.
    pub(super) async fn receive_from_any(&self, request: ReceiveRequest) -> Result<ReceiveResponse, Status> {
        let api = self.api()?;
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let deadline = Instant::now() + wait;
        if (0..api.known_partitions(&request.queue).unwrap_or_default())
            .any(|partition| api.lacks_group(&partitions::name(&request.queue, partition), &request.group))
        {
            // In all of them, before any of them gives anything up that it has been acked elsewhere.
            let create = CreateGroupRequest {
                queue: request.queue.clone(),
                group: request.group.clone(),
                ..CreateGroupRequest::default()
            };
            QueuesService(self.0.clone()).create_group(Request::new(create)).await?;
        }
        let mut failure = None;
        loop {
            let partitions = api.known_partitions(&request.queue).unwrap_or_default();
            let first = u32::try_from(random_u64() % u64::from(partitions.max(1))).unwrap_or_default();
            for partition in (0..partitions).map(|later| (first + later) % partitions) {
                let queue = partitions::name(&request.queue, partition);
                if !api.has_unacked(&queue, &request.group) {
                    continue;
                }
                let of_partition = ReceiveRequest { queue, wait_ms: 0, ..request.clone() };
                let mut received = match self.receive(Request::new(of_partition)).await {
                    Ok(received) => received.into_inner(),
                    // Others may have some.
                    Err(status) => {
                        failure = Some(status);
                        continue;
                    }
                };
                if !received.messages.is_empty() {
                    for message in &mut received.messages {
                        message.lease_token = token_of(partition, &message.lease_token);
                    }
                    return Ok(received);
                }
            }
            if Instant::now() >= deadline {
                return failure.map_or_else(|| Ok(ReceiveResponse::default()), Err);
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Settles messages, each at the partition that it was received from.
    pub(super) async fn settle_at_each(&self, request: SettleRequest) -> Result<SettleResponse, Status> {
        let SettleRequest { queue, group, acks, nacks, extends } = request;
        let mut settlements: BTreeMap<u32, SettleRequest> = BTreeMap::new();
        let mut failures = Vec::new();
        let mut at = |token: &mut String, add: &mut dyn FnMut(&mut SettleRequest, String)| match token
            .split_once(TOKEN_SEPARATOR)
            .map(|(partition, token)| (partition.parse(), token.to_owned()))
        {
            Some((Ok(partition), token)) => add(settlements.entry(partition).or_default(), token),
            _ => failures.push(malformed(std::mem::take(token))),
        };
        for mut token in acks {
            at(&mut token, &mut |settle, token| settle.acks.push(token));
        }
        for mut nack in nacks {
            let skein_proto::node::TokenNack { delay_ms, reject, .. } = nack;
            at(&mut nack.lease_token, &mut |settle, lease_token| {
                settle.nacks.push(skein_proto::node::TokenNack { lease_token, delay_ms, reject });
            });
        }
        for mut extend in extends {
            let lease_ms = extend.lease_ms;
            at(&mut extend.lease_token, &mut |settle, lease_token| {
                settle.extends.push(skein_proto::node::TokenExtend { lease_token, lease_ms });
            });
        }
        for (partition, settlement) in settlements {
            let name = partitions::name(&queue, partition);
            let of_partition = SettleRequest { queue: name, group: group.clone(), ..settlement };
            let tokens = tokens_of(&of_partition);
            let answer = match self.settle(Request::new(of_partition)).await {
                Ok(answer) => answer.into_inner(),
                // What was settled elsewhere is, and must not be taken for not.
                Err(status) => {
                    SettleResponse { failures: tokens.map(|token| failed(token, &status)).collect() }
                }
            };
            failures.extend(answer.failures.into_iter().map(|failure| TokenFailure {
                lease_token: token_of(partition, &failure.lease_token),
                ..failure
            }));
        }
        Ok(SettleResponse { failures })
    }
}

impl QueuesService {
    /// Deletes a group in every partition, also where an earlier call came so far and no further.
    pub(super) async fn delete_group_of_all(
        &self,
        request: DeleteGroupRequest,
        partitions: Vec<String>,
    ) -> Result<DeleteGroupResponse, Status> {
        let mut not_found = None;
        let mut found = false;
        for queue in partitions {
            let of_partition = DeleteGroupRequest { queue: queue.clone(), ..request.clone() };
            match self.delete_group(Request::new(of_partition)).await {
                Ok(_) => found = true,
                Err(status) if status::reason_of(&status) == Some(Reason::GroupNotFound) => {
                    not_found = Some(status);
                }
                Err(refused) if found => return Err(status::partly_done(&queue, refused)),
                Err(refused) => return Err(refused),
            }
        }
        not_found.filter(|_| !found).map_or(Ok(DeleteGroupResponse {}), Err)
    }
}

impl Api {
    /// How many partitions a queue had, from the first to now, as this node's replica of the first one knows.
    fn partition_counts(&self, queue: &str) -> Result<Vec<u32>, Status> {
        let gone = || status::queue_not_found(queue);
        let now = self.known_partitions(queue).ok_or_else(gone)?;
        let first = self.known_queue(&partitions::name(queue, 0)).ok_or_else(gone)?;
        self.group(first.shard)?.replica().with_messages(|shard| {
            let first = shard.queue(first.id).filter(|first| first.settings().partitions >= now);
            let first = first.ok_or_else(|| status::not_heard_yet(queue))?;
            Ok(first.growths().map(|growth| growth.from).chain([now]).collect())
        })
    }

    /// Whether a partition has no such group, as far as this node knows.
    fn lacks_group(&self, queue: &str, group: &str) -> bool {
        let lacks = |queue: Option<&Queue>| queue.is_none_or(|queue| queue.group_by_name(group).is_none());
        self.with_known_queue(queue, lacks).unwrap_or_default()
    }

    /// Whether there may be something for a group.
    fn has_unacked(&self, queue: &str, group: &str) -> bool {
        let has = |queue: Option<&Queue>| {
            let Some(queue) = queue else { return true };
            queue.group_by_name(group).is_none_or(|group| group.unacked_count(queue.next_offset()) > 0)
        };
        self.with_known_queue(queue, has).unwrap_or_default()
    }
}

/// The one partition that all messages of a batch belong to; `any` chooses where they have neither key nor id.
fn partition_of(request: &SendRequest, partitions: u32, any: u64) -> Result<u32, Status> {
    let keys = batch::encoded_messages(&request.batch).filter_map(|(_, message)| {
        let fields = Fields::of(message);
        partitions::spread_by(fields.key(), fields.message_id())
    });
    let partition = partitions::of_all(keys, partitions).map_err(|partitions::Apart| {
        let message = "the messages belong to several partitions, and are published all or none; send those with the \
                       same key together";
        status::status(Code::InvalidArgument, Reason::Partitioned, message)
    })?;
    let turn = || u32::try_from(any % u64::from(partitions)).unwrap_or_default();
    Ok(partition.unwrap_or_else(turn))
}

fn token_of(partition: u32, token: &str) -> String {
    format!("{partition}{TOKEN_SEPARATOR}{token}")
}

/// All that a call is to settle.
fn tokens_of(request: &SettleRequest) -> impl Iterator<Item = String> + use<> {
    let nacks = request.nacks.iter().map(|nack| &nack.lease_token);
    let extends = request.extends.iter().map(|extend| &extend.lease_token);
    let tokens: Vec<_> = request.acks.iter().chain(nacks).chain(extends).cloned().collect();
    tokens.into_iter()
}

fn failed(lease_token: String, status: &Status) -> TokenFailure {
    let reason = status::reason_of(status).unwrap_or(Reason::OutcomeUnknown).into();
    TokenFailure { lease_token, reason, message: status.message().to_owned() }
}

fn malformed(lease_token: String) -> TokenFailure {
    let message =
        "the lease token was not received from this queue, or only in part; give it back as it came"
            .to_owned();
    TokenFailure { lease_token, reason: Reason::LeaseTokenMalformed.into(), message }
}
