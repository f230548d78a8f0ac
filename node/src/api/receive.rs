//! Consuming without a stream: take some messages, settle them by their lease tokens.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skein_proto::{
    limits,
    node::{
        Reason, ReceiveRequest, ReceiveResponse, ReceivedMessage, SettleRequest, SettleResponse, TokenFailure,
    },
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    Api, consume,
    names::QueueRef,
    status,
    wanted::{Wanted, WantedReader},
};
use crate::{
    batch,
    dispatch::{ConsumerId, Credit, GroupKey},
    offsets::OffsetRange,
    shard::{Coming, LeaseToken, OutboxItem, SettleItem, SettleKind, Unsettled},
};

/// The longest that a call waits for a message.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a call passes by messages that its group does not want, at least.
const PASS_BY_MIN: Duration = Duration::from_secs(1);

/// How long a call waits for older partitions to be done, at least: it asks their leaders.
const OLDER_WAIT_MIN: Duration = Duration::from_millis(100);

/// Bytes of messages after which nothing is added to an answer. One more batch, and a token for each message, still fit
/// into what a client decodes.
const RESPONSE_BYTES: usize = limits::BATCH_BYTES_MAX / 2;

/// The most messages in one answer.
const RECEIVE_MESSAGES_MAX: u32 = 10_000;

impl Api {
    /// Takes messages of a queue whose shard this node leads.
    pub(super) async fn receive(
        &self,
        queue: &QueueRef,
        request: ReceiveRequest,
    ) -> Result<ReceiveResponse, Status> {
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let deadline = Instant::now() + wait;
        // Those that the group does not want are passed by, also when there is no time to wait for others.
        let pass_by_until = deadline.max(Instant::now() + PASS_BY_MIN);
        let older_done = self.wait_for_older_partitions(queue, &request.group);
        let until = deadline.max(Instant::now() + OLDER_WAIT_MIN);
        if self.came_later(queue) && tokio::time::timeout_at(until, older_done).await.is_err() {
            return Ok(ReceiveResponse::default());
        }
        loop {
            let (messages, has_unwanted) = self.receive_once(queue, &request, deadline).await?;
            if !messages.is_empty() || !has_unwanted || Instant::now() >= pass_by_until {
                return Ok(ReceiveResponse { messages });
            }
        }
    }

    /// Takes what is there, or what comes first. Says as well whether there was any that the group does not want.
    async fn receive_once(
        &self,
        queue: &QueueRef,
        request: &ReceiveRequest,
        deadline: Instant,
    ) -> Result<(Vec<ReceivedMessage>, bool), Status> {
        let bytes_ceiling = limits::BATCH_BYTES_MAX as u64;
        let bytes = if request.bytes_max == 0 { bytes_ceiling } else { request.bytes_max.min(bytes_ceiling) };
        let credit = Credit { messages: request.messages_max.clamp(1, RECEIVE_MESSAGES_MAX), bytes };
        let (key, delivery, mut subscription) =
            self.subscribe(queue, &request.group, credit, Coming::Once).await?;
        let mut items = Vec::new();
        let items_max = credit.messages as usize;
        let mut stopping = self.stopping.clone();
        tokio::select! {
            // What is there is handed out at once, before the clock is looked at.
            biased;
            count = subscription.outbox().receive(&mut items, items_max) => if count == 0 {
                return Err(status::leader_moved());
            },
            _ = stopping.wait_for(|stopping| *stopping) => return Err(status::shutting_down()),
            () = tokio::time::sleep_until(deadline) => {}
        }
        // Whatever was handed out in the meantime belongs to this answer: nobody else will get it for a lease's time.
        let mut outbox = subscription.detach().await;
        while outbox.take_waiting(&mut items) {}
        let server = self.server(queue.shard)?;
        let replica = Arc::clone(server.group().replica());
        let mut reader = WantedReader::new(key, replica, delivery.clone(), server.bodies().reader());
        let (messages, left) = received(&mut reader, delivery.term(), items).await?;
        let has_unwanted = reader.ack_unwanted().await;
        if !left.is_empty() {
            // Fails when this node stopped leading, and then nobody holds them.
            let _ = delivery.settle(key, left).await;
        }
        Ok((messages, has_unwanted))
    }

    /// Settles messages taken with Receive from a queue whose shard this node leads.
    pub(super) async fn settle(
        &self,
        queue: &QueueRef,
        request: SettleRequest,
    ) -> Result<SettleResponse, Status> {
        let group = self.find_group(queue, &request.group)?;
        let delivery = self.delivery(queue.shard).await?;
        consume::check_settle_count(request.acks.len() + request.nacks.len() + request.extends.len())?;
        let mut settlement = TokenSettlement::new(delivery.term());
        for token in request.acks {
            settlement.add(token, SettleKind::Ack);
        }
        for nack in request.nacks {
            let kind = consume::returned(nack.delay_ms, nack.reject)?;
            settlement.add(nack.lease_token, kind);
        }
        for extend in request.extends {
            let lease_ms = consume::check_duration("lease_ms", extend.lease_ms)?;
            settlement.add(extend.lease_token, SettleKind::Extend { lease_ms });
        }
        let key = GroupKey { queue: queue.id, group };
        let items = std::mem::take(&mut settlement.items);
        let unsettled = delivery.settle(key, items).await.map_err(status::from_settle)?;
        Ok(SettleResponse { failures: settlement.failures(&unsettled) })
    }
}

/// The messages of an answer, and what is to be given back because it would make the answer too large: credit knows the
/// size of a message in the middle of a batch only on average.
async fn received(
    reader: &mut WantedReader,
    term: u64,
    items: Vec<OutboxItem>,
) -> Result<(Vec<ReceivedMessage>, Vec<SettleItem>), Status> {
    let mut received = Vec::new();
    let mut left = Vec::new();
    let mut bytes = 0;
    for item in items {
        let OutboxItem { delivery, slice, .. } = item;
        let consumer = delivery.consumer;
        if bytes >= RESPONSE_BYTES {
            let range = OffsetRange::new(delivery.first, u64::from(delivery.count));
            left.push(SettleItem { consumer, range, kind: SettleKind::Nack { delay_ms: Some(0) } });
            continue;
        }
        for Wanted { first, batch, .. } in reader.read(&item).await? {
            bytes += batch.len();
            for (position, message) in (0..).zip(batch::messages(&batch)) {
                let offset = first.plus(position);
                received.push(ReceivedMessage {
                    offset: offset.get(),
                    attempt: delivery.attempt,
                    published_at_ms: slice.published_at_ms,
                    lease_token: LeaseToken { term, consumer, offset }.to_string(),
                    message,
                });
            }
        }
    }
    Ok((received, left))
}

/// Tokens on their way to the dispatcher and back.
struct TokenSettlement {
    term: u64,
    items: Vec<SettleItem>,
    tokens: BTreeMap<(ConsumerId, u64), String>,
    failures: Vec<TokenFailure>,
}

impl TokenSettlement {
    fn new(term: u64) -> Self {
        Self { term, items: Vec::new(), tokens: BTreeMap::new(), failures: Vec::new() }
    }

    fn add(&mut self, text: String, kind: SettleKind) {
        match text.parse::<LeaseToken>() {
            Err(error) => {
                let (reason, message) = status::malformed_token(error);
                self.fail(text, reason, &message);
            }
            Ok(token) if token.term != self.term => {
                let (reason, message) = status::TOKEN_OF_ANOTHER_LEADER;
                self.fail(text, reason, message);
            }
            Ok(LeaseToken { consumer, offset, .. }) => {
                self.tokens.insert((consumer, offset.get()), text);
                self.items.push(SettleItem { consumer, range: OffsetRange::new(offset, 1), kind });
            }
        }
    }

    fn failures(mut self, unsettled: &[Unsettled]) -> Vec<TokenFailure> {
        for Unsettled { consumer, range, refusal } in unsettled {
            let (reason, message) = status::refusal(*refusal);
            if let Some(token) = self.tokens.remove(&(*consumer, range.first.get())) {
                self.fail(token, reason, message);
            }
        }
        self.failures
    }

    fn fail(&mut self, lease_token: String, reason: Reason, message: &str) {
        self.failures.push(TokenFailure { lease_token, reason: reason.into(), message: message.to_owned() });
    }
}
