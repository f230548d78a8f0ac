//! How the nodes deliver messages.

use futures::{Stream, StreamExt};
use prost::Message as _;
use skein_proto::{
    broker::{self, Reason},
    node::{self, broker_server, consume_request::Request as Consume},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    cluster::{Node, Outgoing, Queue, SHARD, published_at_ms, queue_not_found},
    publish,
};

#[tonic::async_trait]
impl broker_server::Broker for Node {
    type PublishStream = Outgoing<node::PublishResponse>;

    async fn publish(
        &self,
        requests: Request<Streaming<node::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        Ok(Response::new(publish::serve(self.clone(), requests.into_inner()).boxed()))
    }

    type ConsumeStream = Outgoing<node::ConsumeResponse>;

    async fn consume(
        &self,
        requests: Request<Streaming<node::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Ok(Response::new(serve(self.clone(), requests.into_inner()).boxed()))
    }

    async fn send(
        &self,
        request: Request<node::SendRequest>,
    ) -> Result<Response<node::SendResponse>, Status> {
        let node::SendRequest { queue, producer_id, sequence, batch, .. } = request.into_inner();
        let confirm = {
            let mut state = self.shared.state();
            state.sent.push((queue.clone(), producer_id, sequence));
            let confirm = publish::store(&mut state, &queue, producer_id, sequence, &batch)?;
            if state.answers_lost > 0 {
                state.answers_lost -= 1;
                return Err(Status::unavailable("the answer got lost"));
            }
            confirm
        };
        self.shared.announce();
        let mut released = std::pin::pin!(self.shared.confirms_released.notified());
        released.as_mut().enable();
        let holds_confirms = self.shared.state().holds_confirms;
        if holds_confirms {
            released.await;
        }
        Ok(Response::new(node::SendResponse { confirm: Some(confirm), also: Vec::new() }))
    }

    async fn receive(
        &self,
        request: Request<node::ReceiveRequest>,
    ) -> Result<Response<node::ReceiveResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state();
        let queue = state.queues.get_mut(&request.queue).ok_or_else(|| queue_not_found(&request.queue))?;
        let deliveries = lease(queue, &request.group, u64::from(request.messages_max.max(1)));
        let received = |delivery: node::DeliveryBatch| node::ReceivedMessage {
            offset: delivery.first_offset,
            attempt: delivery.attempt,
            published_at_ms: delivery.published_at_ms,
            lease_token: delivery.first_offset.to_string(),
            message: broker::MessageBatch::decode(delivery.batch).unwrap().messages[0].encode_to_vec().into(),
        };
        Ok(Response::new(node::ReceiveResponse { messages: deliveries.into_iter().map(received).collect() }))
    }

    async fn settle(
        &self,
        request: Request<node::SettleRequest>,
    ) -> Result<Response<node::SettleResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state();
        let queue = state.queues.get_mut(&request.queue).ok_or_else(|| queue_not_found(&request.queue))?;
        let group = queue.groups.entry(request.group).or_default();
        let mut failures = Vec::new();
        let nacks = request.nacks.into_iter().map(|nack| (nack.lease_token, Some(nack.delay_ms)));
        for (token, returned) in request.acks.into_iter().map(|token| (token, None)).chain(nacks) {
            let lease = token.parse().ok().and_then(|offset| group.leased.remove_entry(&offset));
            match (lease, returned) {
                (Some((offset, _)), None) => group.acked.push(offset),
                (Some((offset, attempt)), Some(delay_ms)) => {
                    group.nacked.push((offset, delay_ms));
                    group.returned.insert(offset, attempt + 1);
                }
                (None, _) => failures.push(node::TokenFailure {
                    lease_token: token,
                    reason: Reason::LeaseLost.into(),
                    message: "the lease ended".into(),
                }),
            }
        }
        Ok(Response::new(node::SettleResponse { failures }))
    }

    type BrowseStream = Outgoing<node::BrowseResponse>;

    async fn browse(
        &self,
        request: Request<node::BrowseRequest>,
    ) -> Result<Response<Self::BrowseStream>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.state();
        state.browsed.push((self.address.clone(), request.clone()));
        if !state.queues.contains_key(&request.queue) {
            return Err(queue_not_found(&request.queue));
        }
        drop(state);
        self.shared.announce();
        Ok(Response::new(browse(self.clone(), request).boxed()))
    }
}

/// Serves one browse stream.
fn browse(
    node: Node,
    mut request: node::BrowseRequest,
) -> impl Stream<Item = Result<node::BrowseResponse, Status>> {
    let (responses, outgoing) = mpsc::unbounded_channel();
    let mut streams_end = node.shared.streams_end.subscribe();
    let mut news = node.shared.news.subscribe();
    tokio::spawn(async move {
        loop {
            for batch in browsed(&node, &request) {
                request.from_offset = batch.first_offset + 1;
                if responses.send(Ok(node::BrowseResponse { batches: vec![batch] })).is_err() {
                    return;
                }
            }
            if !request.follow {
                return;
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = streams_end.changed() => {
                    let _ = responses.send(Err(Status::unavailable("the node is gone")));
                    return;
                }
                () = responses.closed() => return,
            }
        }
    });
    UnboundedReceiverStream::new(outgoing)
}

fn browsed(node: &Node, request: &node::BrowseRequest) -> Vec<node::BrowsedBatch> {
    let state = node.shared.state();
    let Some(queue) = state.queues.get(&request.queue) else { return Vec::new() };
    let wanted = queue.messages().filter(|(offset, _)| {
        *offset >= request.from_offset && published_at_ms(*offset) >= request.from_time_ms
    });
    let batches = wanted.map(|(offset, message)| {
        let batch = broker::MessageBatch { messages: vec![message.clone()] }.encode_to_vec().into();
        let published_at_ms = published_at_ms(offset);
        node::BrowsedBatch { first_offset: offset, count: 1, published_at_ms, batch }
    });
    batches.collect()
}

/// Serves one consume stream.
fn serve(
    node: Node,
    mut requests: Streaming<node::ConsumeRequest>,
) -> impl Stream<Item = Result<node::ConsumeResponse, Status>> {
    let (responses, outgoing) = mpsc::unbounded_channel();
    let mut streams_end = node.shared.streams_end.subscribe();
    let mut news = node.shared.news.subscribe();
    tokio::spawn(async move {
        let mut subscribe = node::Subscribe::default();
        let mut held = Vec::new();
        loop {
            let response = tokio::select! {
                request = requests.next() => match request.and_then(Result::ok).and_then(|request| request.request) {
                    Some(Consume::Subscribe(request)) => {
                        node.shared.state().subscribed.push(request.clone());
                        subscribe = request;
                        let subscribed = subscribed(&node, &subscribe, &mut held);
                        Ok(node::ConsumeResponse { subscribed: Some(subscribed), ..Default::default() })
                    }
                    Some(Consume::Settle(settle)) => Ok(settled(&node, &subscribe, &settle, &mut held)),
                    Some(Consume::Credit(_)) => continue,
                    Some(Consume::Leave(leave)) => {
                        give_back_unseen(&node, &subscribe, &leave, &mut held);
                        continue;
                    }
                    None => break,
                },
                _ = news.changed() => Ok(node::ConsumeResponse::default()),
                _ = streams_end.changed() => Err(Status::unavailable("the node is gone")),
            };
            let is_over = response.is_err();
            let response = response.and_then(|response| deliver(&node, &subscribe, response, &mut held));
            if responses.send(response).is_err() || is_over {
                break;
            }
        }
        let mut state = node.shared.state();
        let resumes = state.resumes;
        let group =
            state.queues.get_mut(&subscribe.queue).and_then(|queue| queue.groups.get_mut(&subscribe.group));
        if let Some(group) = group
            && !resumes
        {
            for offset in held {
                let attempt = group.leased.remove(&offset);
                group.returned.extend(attempt.map(|attempt| (offset, attempt + 1)));
            }
        }
        drop(state);
        node.shared.announce();
    });
    UnboundedReceiverStream::new(outgoing)
}

/// What a consumer that leaves has not looked at is delivered as if it had not been before.
fn give_back_unseen(node: &Node, subscribe: &node::Subscribe, leave: &node::Leave, held: &mut Vec<u64>) {
    let mut state = node.shared.state();
    let queue = state.queues.get_mut(&subscribe.queue);
    let Some(group) = queue.and_then(|queue| queue.groups.get_mut(&subscribe.group)) else { return };
    let is_in = |range: &node::OffsetRange, offset: u64| {
        (range.first..range.first + u64::from(range.count)).contains(&offset)
    };
    held.retain(|offset| {
        let is_seen = leave.seen.iter().any(|range| is_in(range, *offset));
        if !is_seen {
            let attempt = group.leased.remove(offset);
            group.returned.extend(attempt.map(|attempt| (*offset, attempt)));
        }
        is_seen
    });
}

/// What has become of what a consumer held on a stream that ended.
fn subscribed(node: &Node, subscribe: &node::Subscribe, held: &mut Vec<u64>) -> node::Subscribed {
    let state = node.shared.state();
    let mut subscribed = node::Subscribed { shard_id: SHARD, lease_ms: 30_000, ..Default::default() };
    let group = state.queues.get(&subscribe.queue).and_then(|queue| queue.groups.get(&subscribe.group));
    let Some(group) = group else { return subscribed };
    let claimed = subscribe.resume.iter().flat_map(|resume| &resume.held);
    for offset in claimed.flat_map(|range| range.first..range.first + u64::from(range.count)) {
        let range = node::OffsetRange { first: offset, count: 1 };
        if group.acked.contains(&offset) {
            subscribed.settled.push(range);
        } else if state.resumes && group.leased.contains_key(&offset) {
            held.push(offset);
            subscribed.resumed.push(range);
        }
    }
    subscribed
}

fn deliver(
    node: &Node,
    subscribe: &node::Subscribe,
    mut response: node::ConsumeResponse,
    held: &mut Vec<u64>,
) -> Result<node::ConsumeResponse, Status> {
    if subscribe.queue.is_empty() {
        return Ok(response);
    }
    let mut state = node.shared.state();
    let queue = state.queues.get_mut(&subscribe.queue).ok_or_else(|| queue_not_found(&subscribe.queue))?;
    let credit = u64::from(subscribe.credit.unwrap().messages);
    let room = credit.saturating_sub(held.len() as u64);
    response.deliveries = lease(queue, &subscribe.group, room);
    for delivery in &response.deliveries {
        held.extend(delivery.first_offset..delivery.first_offset + u64::from(delivery.count));
    }
    Ok(response)
}

/// Leases up to `room` messages, each in a batch of its own, or several of the same attempt together.
fn lease(queue: &mut Queue, group: &str, room: u64) -> Vec<node::DeliveryBatch> {
    let mut groups = std::mem::take(&mut queue.groups);
    let found = groups.entry(group.to_owned()).or_default();
    let mut deliveries = Vec::new();
    for (offset, message) in queue.messages() {
        if deliveries.len() as u64 >= room {
            break;
        }
        let attempt = match found.returned.remove(&offset) {
            Some(attempt) => attempt,
            None if offset >= found.delivered_up_to => {
                found.delivered_up_to = offset + 1;
                1
            }
            None => continue,
        };
        found.leased.insert(offset, attempt);
        let batch = broker::MessageBatch { messages: vec![message.clone()] }.encode_to_vec().into();
        deliveries.push(node::DeliveryBatch {
            first_offset: offset,
            count: 1,
            attempt,
            published_at_ms: published_at_ms(offset),
            batch,
        });
    }
    queue.groups = groups;
    joined(deliveries)
}

/// Joins deliveries with consecutive offsets; encoded batches can simply be appended to each other.
fn joined(deliveries: Vec<node::DeliveryBatch>) -> Vec<node::DeliveryBatch> {
    let mut joined: Vec<node::DeliveryBatch> = Vec::new();
    for delivery in deliveries {
        match joined.last_mut() {
            Some(last)
                if last.first_offset + u64::from(last.count) == delivery.first_offset
                    && last.attempt == delivery.attempt =>
            {
                last.count += 1;
                last.batch = [&last.batch[..], &delivery.batch[..]].concat().into();
            }
            _ => joined.push(delivery),
        }
    }
    joined
}

fn settled(
    node: &Node,
    subscribe: &node::Subscribe,
    settle: &node::StreamSettle,
    held: &mut Vec<u64>,
) -> node::ConsumeResponse {
    let mut state = node.shared.state();
    let holds_answers = state.holds_answers;
    let queue = state.queues.get_mut(&subscribe.queue);
    let Some(group) = queue.and_then(|queue| queue.groups.get_mut(&subscribe.group)) else {
        // Deleted meanwhile: nothing is left to settle.
        let settled = vec![node::SettleResult { settle_id: settle.settle_id, failures: Vec::new() }];
        return node::ConsumeResponse { settled, ..node::ConsumeResponse::default() };
    };
    let (mut failures, mut nacked) = (Vec::new(), Vec::new());
    let mut release = |range: &node::OffsetRange, returns: bool| {
        for offset in range.first..range.first + u64::from(range.count) {
            held.retain(|held| *held != offset);
            match group.leased.remove(&offset) {
                Some(attempt) if returns => drop(group.returned.insert(offset, attempt + 1)),
                Some(_) => group.acked.push(offset),
                None => failures.push(node::SettleFailure {
                    offsets: Some(node::OffsetRange { first: offset, count: 1 }),
                    reason: Reason::NotDelivered.into(),
                    message: "it is not yours".into(),
                }),
            }
        }
    };
    for range in settle.extends.iter().filter_map(|extend| extend.offsets.as_ref()) {
        group.extended.extend(range.first..range.first + u64::from(range.count));
        node.shared.announce();
    }
    for nack in &settle.nacks {
        let range = nack.offsets.unwrap();
        nacked.extend(
            (range.first..range.first + u64::from(range.count)).map(|offset| (offset, nack.delay_ms)),
        );
    }
    settle.acks.iter().for_each(|range| release(range, false));
    settle.nacks.iter().filter_map(|nack| nack.offsets.as_ref()).for_each(|range| release(range, true));
    group.nacked.extend(nacked);
    let result = node::SettleResult { settle_id: settle.settle_id, failures };
    let settled = if holds_answers { Vec::new() } else { vec![result] };
    node::ConsumeResponse { settled, ..Default::default() }
}
