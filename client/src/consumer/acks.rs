//! Gathers acks, returns and extensions into ranges while earlier ones wait for their answer. No I/O.

mod resume;

use std::{
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use skein_proto::{
    broker::Reason,
    ids::Offset,
    limits,
    node::{OffsetRange, SettleFailure, SettleResult, StreamExtend, StreamNack, StreamSettle},
};
use tonic::Code;

use super::ranges::{end, merge, push};
use crate::{
    error::{Cause, SettleError, reason_of},
    outcome::{Outcome, WaiterSlot},
    wire_time::duration_ms,
};

pub(super) use self::resume::Resumed;

/// Settlements that are sent as soon as there is something to settle. Beyond that acks gather until an answer comes;
/// each costs the cluster a replicated command, so few large ones are better.
const SETTLES_IN_FLIGHT: usize = 4;

const _: () = assert!(SETTLES_IN_FLIGHT <= limits::SETTLES_IN_FLIGHT_MAX);

/// What to do with a range of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    Ack,
    /// Without a delay, as the queue says.
    Nack {
        delay: Option<Duration>,
    },
    Reject,
    Extend {
        lease: Duration,
    },
}

impl Settle {
    /// For how long it asks.
    pub(super) fn duration(&self) -> Option<Duration> {
        match self {
            Self::Ack | Self::Reject => None,
            Self::Nack { delay } => *delay,
            Self::Extend { lease } => Some(*lease),
        }
    }
}

/// What became of one settlement.
#[derive(Debug)]
pub(super) enum Answer {
    /// Everything is settled but these.
    Answered(Vec<SettleFailure>),
    Failed(SettleError),
}

/// Resolves once the node has answered an ack, nack or extension. May be dropped.
#[derive(Debug)]
pub struct Settled {
    outcome: Arc<Outcome<Answer>>,
    range: OffsetRange,
    slot: WaiterSlot,
}

impl Settled {
    pub(super) fn failed(error: SettleError) -> Self {
        let outcome = Arc::new(Outcome::ready(Answer::Failed(error)));
        Self { outcome, range: OffsetRange::default(), slot: WaiterSlot::default() }
    }
}

impl Future for Settled {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let range = this.range;
        this.outcome.poll(&mut this.slot, cx).map(|answer| match answer {
            Answer::Failed(error) => Err(error.clone()),
            Answer::Answered(failures) => match failures.iter().find(|failure| hits(failure, range)) {
                Some(failure) => Err(refused(failure)),
                None => Ok(()),
            },
        })
    }
}

/// What waits to be settled on one stream, and what waits for its answer.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    gathering: Option<Settlement>,
    /// To be sent before what is being gathered: too large to go at once, or sent on a stream that was lost.
    next: VecDeque<Settlement>,
    unanswered: VecDeque<Settlement>,
    next_id: u64,
}

/// Settled together, and answered together.
#[derive(Debug)]
struct Settlement {
    request: StreamSettle,
    outcome: Arc<Outcome<Answer>>,
    /// What of it cannot be settled any more, since its stream was lost.
    lost: Vec<SettleFailure>,
    /// It was sent before, on a stream that was lost.
    was_sent: bool,
}

/// Whom to tell what.
pub(super) type Told = (Arc<Outcome<Answer>>, Answer);

impl Settlements {
    pub(super) fn add(&mut self, settle: Settle, first: Offset, count: u32) -> Settled {
        let range = OffsetRange { first: first.get(), count };
        let gathering = self.gathering.get_or_insert_with(|| Settlement {
            request: StreamSettle::default(),
            outcome: Arc::new(Outcome::pending()),
            lost: Vec::new(),
            was_sent: false,
        });
        gathering.add(settle, range);
        Settled { outcome: Arc::clone(&gathering.outcome), range, slot: WaiterSlot::default() }
    }

    pub(super) fn is_sendable(&self) -> bool {
        (self.gathering.is_some() || !self.next.is_empty()) && self.unanswered.len() < SETTLES_IN_FLIGHT
    }

    pub(super) fn is_idle(&self) -> bool {
        self.gathering.is_none() && self.next.is_empty() && self.unanswered.is_empty()
    }

    /// What to send next, if it is time to send anything.
    pub(super) fn next_to_send(&mut self) -> Option<StreamSettle> {
        if !self.is_sendable() {
            return None;
        }
        let mut settlement = self.next.pop_front().or_else(|| self.gathering.take())?;
        merge(&mut settlement.request.acks);
        if let Some(rest) = split_off(&mut settlement.request, limits::SETTLE_RANGES_MAX) {
            // Whoever waits for any of them waits for the answer to all parts.
            let (outcome, was_sent) = (Arc::clone(&settlement.outcome), settlement.was_sent);
            let lost = mem::take(&mut settlement.lost);
            self.next.push_front(Settlement { request: rest, outcome, lost, was_sent });
        }
        self.next_id += 1;
        settlement.request.settle_id = self.next_id;
        let request = settlement.request.clone();
        self.unanswered.push_back(settlement);
        Some(request)
    }

    /// Takes an answer. Returns whom to tell what. An answer to what was never asked is passed over, and so is one that
    /// says nothing but that the node leads no more: the stream ends with it, and the next one goes on.
    pub(super) fn answer(&mut self, result: SettleResult) -> Option<Told> {
        if result.failures.iter().any(|failure| failure.offsets.is_none()) {
            return None;
        }
        let index = self.unanswered.iter().position(|sent| sent.request.settle_id == result.settle_id)?;
        let Settlement { outcome, lost, .. } = self.unanswered.remove(index)?;
        self.conclude(outcome, result.failures.into_iter().chain(lost).collect())
    }

    /// Whom to tell what, unless another part of the same settlement is still to be answered: it tells all of it then.
    fn conclude(&mut self, outcome: Arc<Outcome<Answer>>, failures: Vec<SettleFailure>) -> Option<Told> {
        let rest = self.unanswered.iter_mut().chain(&mut self.next);
        match { rest }.find(|other| other.is_part_of(&outcome)) {
            Some(other) => {
                other.lost.extend(failures);
                None
            }
            None => Some((outcome, Answer::Answered(failures))),
        }
    }

    /// What is to be acked or returned, as far as no node has answered.
    pub(super) fn ranges(&self) -> impl Iterator<Item = &OffsetRange> {
        let all = self.unanswered.iter().chain(&self.next).chain(&self.gathering);
        all.flat_map(|settlement| {
            let returned = settlement.request.nacks.iter().filter_map(|nack| nack.offsets.as_ref());
            settlement.request.acks.iter().chain(returned)
        })
    }

    /// The stream is lost, and another one will go on. What was not answered is to be sent again.
    pub(super) fn suspend(&mut self) {
        while let Some(sent) = self.unanswered.pop_back() {
            self.next.push_front(Settlement { was_sent: true, ..sent });
        }
    }

    /// The stream is lost for good. Returns whom to tell what.
    pub(super) fn lose(&mut self, cause: &Cause) -> Vec<Told> {
        self.suspend();
        let all = mem::take(&mut self.next).into_iter().chain(self.gathering.take());
        let failed = all.map(|settlement| {
            let error = match settlement.was_sent {
                true => SettleError::OutcomeUnknown(cause.clone()),
                false => SettleError::LeaseLost(cause.clone()),
            };
            (settlement.outcome, Answer::Failed(error))
        });
        failed.collect()
    }
}

impl Settlement {
    /// Whether whoever waits for this outcome waits for it.
    fn is_part_of(&self, outcome: &Arc<Outcome<Answer>>) -> bool {
        Arc::ptr_eq(&self.outcome, outcome)
    }

    fn is_empty(&self) -> bool {
        self.request.acks.is_empty() && self.request.nacks.is_empty() && self.request.extends.is_empty()
    }

    fn add(&mut self, settle: Settle, range: OffsetRange) {
        match settle {
            Settle::Ack => push(&mut self.request.acks, range),
            Settle::Nack { delay } => {
                let delay_ms = delay.map(duration_ms);
                self.request.nacks.push(StreamNack { offsets: Some(range), delay_ms, reject: false });
            }
            Settle::Reject => {
                self.request.nacks.push(StreamNack { offsets: Some(range), delay_ms: None, reject: true });
            }
            Settle::Extend { lease } => {
                self.request
                    .extends
                    .push(StreamExtend { offsets: Some(range), lease_ms: duration_ms(lease) });
            }
        }
    }
}

/// Leaves as many parts of a settlement as one may have, and gives the rest.
fn split_off(request: &mut StreamSettle, parts_max: usize) -> Option<StreamSettle> {
    let mut left = parts_max;
    let mut take = |length: usize| {
        let taken = length.min(left);
        left -= taken;
        taken
    };
    let acks = request.acks.split_off(take(request.acks.len()));
    let nacks = request.nacks.split_off(take(request.nacks.len()));
    let extends = request.extends.split_off(take(request.extends.len()));
    let is_empty = acks.is_empty() && nacks.is_empty() && extends.is_empty();
    (!is_empty).then(|| StreamSettle { acks, nacks, extends, ..StreamSettle::default() })
}

fn hits(failure: &SettleFailure, range: OffsetRange) -> bool {
    // Without offsets it is about the whole settlement.
    failure.offsets.as_ref().is_none_or(|failed| failed.first < end(&range) && range.first < end(failed))
}

fn refused(failure: &SettleFailure) -> SettleError {
    let reason = reason_of(failure.reason);
    let cause = Cause::new(Code::FailedPrecondition, reason, failure.message.as_str());
    match reason {
        Reason::LeaseLost => SettleError::LeaseLost(cause),
        Reason::OutcomeUnknown => SettleError::OutcomeUnknown(cause),
        _ => SettleError::NotAccepted(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u32) -> OffsetRange {
        OffsetRange { first, count }
    }

    #[test]
    fn acks_in_order_become_one_range() {
        let mut settlements = Settlements::default();
        for offset in 5..1_005 {
            drop(settlements.add(Settle::Ack, Offset::new(offset), 1));
        }
        let sent = settlements.next_to_send().unwrap();
        assert_eq!(sent.acks, [range(5, 1_000)]);
    }

    #[test]
    fn settlements_gather_while_enough_are_unanswered() {
        let mut settlements = Settlements::default();
        let ack = |settlements: &mut Settlements, offset| {
            drop(settlements.add(Settle::Ack, Offset::new(offset), 1));
            settlements.next_to_send().map(|sent| sent.settle_id)
        };
        for id in 1..=SETTLES_IN_FLIGHT as u64 {
            assert_eq!(ack(&mut settlements, id), Some(id));
        }
        assert_eq!(ack(&mut settlements, 100), None);
        assert_eq!(ack(&mut settlements, 101), None);

        assert!(settlements.answer(SettleResult { settle_id: 2, failures: Vec::new() }).is_some());
        assert_eq!(settlements.next_to_send().unwrap().acks, [range(100, 2)]);
        assert!(settlements.answer(SettleResult { settle_id: 2, failures: Vec::new() }).is_none());
    }

    #[tokio::test]
    async fn each_hears_of_its_own_failure() {
        let mut settlements = Settlements::default();
        let settled: Vec<_> = (0..3).map(|o| settlements.add(Settle::Ack, Offset::new(o), 1)).collect();
        let sent = settlements.next_to_send().unwrap();
        let failure = SettleFailure {
            offsets: Some(range(1, 1)),
            reason: Reason::LeaseLost.into(),
            message: "too late".into(),
        };
        let result = SettleResult { settle_id: sent.settle_id, failures: vec![failure] };
        let (outcome, answer) = settlements.answer(result).unwrap();
        outcome.set(answer);
        let results = futures::future::join_all(settled).await;
        assert!(matches!(&results[..], [Ok(()), Err(SettleError::LeaseLost(_)), Ok(())]), "{results:?}");
    }

    #[test]
    fn who_leads_no_more_answers_nothing() {
        let mut settlements = Settlements::default();
        drop(settlements.add(Settle::Ack, Offset::ZERO, 1));
        let settle_id = settlements.next_to_send().unwrap().settle_id;
        for reason in [Reason::NoLeader, Reason::OutcomeUnknown] {
            let failure = SettleFailure { reason: reason.into(), ..SettleFailure::default() };
            assert!(settlements.answer(SettleResult { settle_id, failures: vec![failure] }).is_none());
        }
        settlements.suspend();
        assert_eq!(settlements.next_to_send().unwrap().acks, [range(0, 1)]);
    }

    #[test]
    fn a_settlement_has_no_more_parts_than_a_node_takes() {
        let mut settlements = Settlements::default();
        for offset in 0..=limits::SETTLE_RANGES_MAX as u64 {
            drop(settlements.add(Settle::Nack { delay: None }, Offset::new(offset), 1));
        }
        assert_eq!(settlements.next_to_send().unwrap().nacks.len(), limits::SETTLE_RANGES_MAX);
        assert_eq!(settlements.next_to_send().unwrap().nacks.len(), 1);
        assert!(settlements.next_to_send().is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_part_waits_for_all_and_hears_of_every_failure() {
        let mut settlements = Settlements::default();
        let all: Vec<_> = (0..=limits::SETTLE_RANGES_MAX as u64)
            .map(|offset| settlements.add(Settle::Nack { delay: None }, Offset::new(offset), 1))
            .collect();
        let parts = [settlements.next_to_send().unwrap(), settlements.next_to_send().unwrap()];
        let result = |part: &StreamSettle, failed| {
            let failures = vec![SettleFailure {
                offsets: Some(range(failed, 1)),
                reason: Reason::LeaseLost.into(),
                message: "too late".into(),
            }];
            SettleResult { settle_id: part.settle_id, failures }
        };
        let last = limits::SETTLE_RANGES_MAX as u64;
        assert!(settlements.answer(result(&parts[0], 3)).is_none(), "the other part is not answered");
        let (outcome, answer) = settlements.answer(result(&parts[1], last)).unwrap();
        outcome.set(answer);
        let failed = futures::future::join_all(all).await;
        let failed = failed.iter().zip(0_u64..).filter(|(settled, _)| settled.is_err());
        assert_eq!(failed.map(|(_, offset)| offset).collect::<Vec<_>>(), [3, last]);
    }

    #[test]
    fn a_return_says_its_delay_only_where_it_has_one() {
        let mut settlements = Settlements::default();
        let delays = [None, Some(Duration::ZERO), Some(Duration::from_millis(5))];
        for (offset, delay) in (0..).zip(delays) {
            drop(settlements.add(Settle::Nack { delay }, Offset::new(offset), 1));
        }
        let sent = settlements.next_to_send().unwrap();
        let delays_ms: Vec<_> = sent.nacks.iter().map(|nack| nack.delay_ms).collect();
        assert_eq!(delays_ms, [None, Some(0), Some(5)]);
    }

    #[tokio::test]
    async fn a_lost_stream_tells_the_sent_from_the_unsent() {
        let mut settlements = Settlements::default();
        let sent = settlements.add(Settle::Ack, Offset::ZERO, 1);
        settlements.next_to_send().unwrap();
        let unsent = settlements.add(Settle::Nack { delay: None }, Offset::new(1), 1);
        let cause = Cause::new(Code::Unavailable, Reason::Unspecified, "gone");
        for (outcome, answer) in settlements.lose(&cause) {
            outcome.set(answer);
        }
        assert!(matches!(sent.await, Err(SettleError::OutcomeUnknown(_))));
        assert!(matches!(unsent.await, Err(SettleError::LeaseLost(_))));
        assert!(settlements.is_idle());
    }
}
