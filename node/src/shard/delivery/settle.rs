//! What becomes of leases that end: acks, returns and what is given up go through raft, and are answered after that.

use std::collections::BTreeMap;

use futures::FutureExt as _;

use super::{
    super::{
        ended::Ended,
        handle::{SettleError, SettleItem, SettleKind, Unsettled},
    },
    Deliverer, SettleReply, Turn,
};
use crate::{
    broker::{Command, Outcome, Return},
    dispatch::{Expired, GroupKey, Refusal, Returned},
    planted::{Bug, is_planted},
    raft::{CommandOutcome, Group, ProposeError, Proposed},
    telemetry::TRACES,
};

/// A settlement that came back from replication.
pub(super) struct Settling {
    result: Result<CommandOutcome, ProposeError>,
    unsettled: Vec<Unsettled>,
    reply: Option<SettleReply>,
}

impl Deliverer {
    pub(super) async fn settle(&mut self, key: GroupKey, items: Vec<SettleItem>, reply: SettleReply) {
        let now = self.now();
        let mut ended = Ended::default();
        let mut unsettled = Vec::new();
        for SettleItem { consumer, range, kind } in items {
            if self.dispatcher.group_of(consumer).is_some_and(|group| group != key) {
                // It holds them for another group: in this one it holds nothing.
                unsettled.push(Unsettled { consumer, range, refusal: Refusal::LeaseLost });
                continue;
            }
            if range.first == range.end() && !range.is_empty() {
                // The last possible offset, which no queue gets to, has no end.
                unsettled.push(Unsettled { consumer, range, refusal: Refusal::NotDelivered });
                continue;
            }
            let parts = match kind {
                SettleKind::Ack => self.dispatcher.ack(consumer, range),
                SettleKind::Nack { .. } | SettleKind::Reject => self.dispatcher.nack(consumer, range),
                SettleKind::Extend { lease_ms } => {
                    self.dispatcher.extend(consumer, range, now.steady_ms + u64::from(lease_ms))
                }
            };
            for (range, part) in parts {
                match (part, kind) {
                    (Err(refusal), _) => unsettled.push(Unsettled { consumer, range, refusal }),
                    (Ok(_), SettleKind::Ack) => {
                        TRACES.ack(key.queue, range.first..range.end());
                        ended.acks.push(range);
                    }
                    (Ok(attempt), SettleKind::Nack { delay_ms }) => {
                        let delay_ms = delay_ms.unwrap_or_else(|| self.redelivery_delay_ms(key, attempt));
                        let not_before_ms = later(now.wall_ms, delay_ms);
                        ended.returns.push(Return { range, attempt, not_before_ms, rejected: false });
                    }
                    (Ok(attempt), SettleKind::Reject) => {
                        ended.returns.push(Return { range, attempt, not_before_ms: 0, rejected: true });
                    }
                    (Ok(_), SettleKind::Extend { .. }) => {}
                }
            }
        }
        if ended.is_empty() {
            let _ = reply.send(Ok(unsettled));
            return;
        }
        if is_planted(Bug::AckAnsweredEarly) {
            let _ = reply.send(Ok(unsettled));
            self.replicate(key, ended, Vec::new(), None).await;
            return;
        }
        self.replicate(key, ended, unsettled, Some(reply)).await;
    }

    pub(super) async fn return_all(
        &mut self,
        returned: Vec<Returned>,
        not_before_ms: impl Fn(GroupKey, u32) -> u64,
    ) {
        let mut by_group: BTreeMap<GroupKey, Ended> = BTreeMap::new();
        for Returned { key, range, attempt } in returned {
            let not_before_ms = not_before_ms(key, attempt);
            let back = Return { range, attempt, not_before_ms, rejected: false };
            by_group.entry(key).or_default().returns.push(back);
        }
        for (key, ended) in by_group {
            self.replicate(key, ended, Vec::new(), None).await;
        }
    }

    pub(super) async fn give_up(&mut self, expired: Vec<Expired>) {
        let mut by_group: BTreeMap<GroupKey, Ended> = BTreeMap::new();
        for Expired { key, range } in expired {
            by_group.entry(key).or_default().expired.push(range);
        }
        for (key, ended) in by_group {
            self.replicate(key, ended, Vec::new(), None).await;
        }
    }

    pub(super) fn redelivery_delay_ms(&self, key: GroupKey, attempt: u32) -> u32 {
        redelivery_delay_ms(&self.group, key, attempt)
    }

    /// Replicates what has ended. The last command answers; the proposer keeps their order, and when an earlier one
    /// fails this task ends before the last can answer.
    pub(super) async fn replicate(
        &mut self,
        key: GroupKey,
        ended: Ended,
        unsettled: Vec<Unsettled>,
        reply: Option<SettleReply>,
    ) {
        let mut commands = ended.into_commands(key, self.dispatcher.seek_count(key));
        let last = commands.pop();
        for command in commands {
            self.propose(&command, Vec::new(), None).await;
        }
        if let Some(last) = last {
            self.propose(&last, unsettled, reply).await;
        }
    }

    pub(super) async fn propose(
        &mut self,
        command: &Command,
        unsettled: Vec<Unsettled>,
        reply: Option<SettleReply>,
    ) {
        let outcome = self.group.propose_patiently(Proposed::shard(command)).await;
        let settling = async move {
            let result = outcome.await.unwrap_or(Err(ProposeError::OutcomeUnknown));
            Turn::Settled(Settling { result, unsettled, reply })
        };
        self.settling.push_back(settling.boxed());
    }
}

/// How long the queue lets a message wait that came back.
pub(super) fn redelivery_delay_ms(group: &Group, key: GroupKey, attempt: u32) -> u32 {
    let redelivery =
        group.replica().with_messages(|shard| Some(shard.queue(key.queue)?.settings().redelivery));
    redelivery.map_or(0, |redelivery| redelivery.delay_after(attempt))
}

/// When a message may be delivered again; 0 for at once.
pub(super) const fn later(now_ms: u64, delay_ms: u32) -> u64 {
    if delay_ms == 0 { 0 } else { now_ms + delay_ms as u64 }
}

/// Hands out the outcome of a settlement. False when it was not replicated.
pub(super) fn on_settled(settling: Settling) -> bool {
    let Settling { result, unsettled, reply } = settling;
    let replicated = result.is_ok();
    let answer = match result {
        Ok(CommandOutcome::Shard(
            Outcome::Settled | Outcome::Trimmed | Outcome::GroupNotFound | Outcome::QueueNotFound,
        )) => Ok(unsettled),
        Ok(outcome) => unreachable!("a settlement came out as {outcome:?}"),
        Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => Err(SettleError::Ended),
        Err(ProposeError::OutcomeUnknown) => Err(SettleError::OutcomeUnknown),
    };
    if let Some(reply) = reply {
        // Whoever asked may have gone; what was settled stays settled.
        let _ = reply.send(answer);
    }
    replicated
}
