//! Gathers acks, returns and extensions into ranges while earlier ones wait for their answer. No I/O.

use std::{
    collections::VecDeque,
    future::Future,
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

use crate::{
    calls::duration_ms,
    error::{Cause, SettleError, reason_of},
    outcome::{Outcome, WaiterSlot},
};

/// Settlements that are sent as soon as there is something to settle. Beyond that acks gather until an answer comes;
/// each costs the cluster a replicated command, so few large ones are better.
const SETTLES_IN_FLIGHT: usize = 4;

/// Ranges in one settlement. Keeps it well below the largest gRPC message, at 20 bytes a range.
const RANGES_MAX: usize = 65_536;

const _: () = assert!(SETTLES_IN_FLIGHT <= limits::SETTLES_IN_FLIGHT_MAX);
const _: () = assert!(RANGES_MAX * 20 < limits::GRPC_MESSAGE_BYTES_MAX);

/// What to do with a range of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settle {
    Ack,
    Nack { delay: Duration },
    Extend { lease: Duration },
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
    gathering: Option<Gathering>,
    unanswered: VecDeque<Unanswered>,
    next_id: u64,
}

#[derive(Debug)]
struct Gathering {
    request: StreamSettle,
    outcome: Arc<Outcome<Answer>>,
}

#[derive(Debug)]
struct Unanswered {
    settle_id: u64,
    /// Messages that are not held any more once it is answered.
    released_count: u64,
    outcome: Arc<Outcome<Answer>>,
}

impl Settlements {
    pub(super) fn add(&mut self, settle: Settle, first: Offset, count: u32) -> Settled {
        let range = OffsetRange { first: first.get(), count };
        let gathering = self.gathering.get_or_insert_with(|| Gathering {
            request: StreamSettle::default(),
            outcome: Arc::new(Outcome::pending()),
        });
        gathering.add(settle, range);
        Settled { outcome: Arc::clone(&gathering.outcome), range, slot: WaiterSlot::default() }
    }

    pub(super) fn is_sendable(&self) -> bool {
        self.gathering.is_some() && self.unanswered.len() < SETTLES_IN_FLIGHT
    }

    pub(super) fn is_idle(&self) -> bool {
        self.gathering.is_none() && self.unanswered.is_empty()
    }

    /// What to send next, if it is time to send anything.
    pub(super) fn next_to_send(&mut self) -> Option<StreamSettle> {
        if !self.is_sendable() {
            return None;
        }
        let Gathering { mut request, outcome } = self.gathering.take()?;
        merge(&mut request.acks);
        if request.acks.len() > RANGES_MAX {
            // Whoever waits for these waits for the answer to the last part.
            let rest = request.acks.split_off(RANGES_MAX);
            let rest = StreamSettle { acks: rest, ..StreamSettle::default() };
            self.gathering = Some(Gathering { request: rest, outcome: Arc::clone(&outcome) });
        }
        self.next_id += 1;
        request.settle_id = self.next_id;
        let returned = request.nacks.iter().filter_map(|nack| nack.offsets.as_ref());
        let released_count = request.acks.iter().chain(returned).map(|range| u64::from(range.count)).sum();
        self.unanswered.push_back(Unanswered { settle_id: self.next_id, released_count, outcome });
        Some(request)
    }

    /// Takes an answer. Returns whom to tell what, and how many messages are not held any more. An answer to what
    /// was never asked is passed over.
    pub(super) fn answer(&mut self, result: SettleResult) -> Option<(Arc<Outcome<Answer>>, Answer, u64)> {
        let index = self.unanswered.iter().position(|sent| sent.settle_id == result.settle_id)?;
        let Unanswered { released_count, outcome, .. } = self.unanswered.remove(index)?;
        Some((outcome, Answer::Answered(result.failures), released_count))
    }

    /// The stream is lost. Returns whom to tell what.
    pub(super) fn lose(&mut self, cause: &Cause) -> Vec<(Arc<Outcome<Answer>>, Answer)> {
        let unknown = SettleError::OutcomeUnknown(cause.clone());
        let lost = SettleError::LeaseLost(cause.clone());
        let unanswered =
            self.unanswered.drain(..).map(|sent| (sent.outcome, Answer::Failed(unknown.clone())));
        let gathering = self.gathering.take().map(|gathered| (gathered.outcome, Answer::Failed(lost)));
        unanswered.chain(gathering).collect()
    }
}

impl Gathering {
    fn add(&mut self, settle: Settle, range: OffsetRange) {
        match settle {
            Settle::Ack => push(&mut self.request.acks, range),
            Settle::Nack { delay } => {
                self.request.nacks.push(StreamNack { offsets: Some(range), delay_ms: duration_ms(delay) });
            }
            Settle::Extend { lease } => {
                self.request
                    .extends
                    .push(StreamExtend { offsets: Some(range), lease_ms: duration_ms(lease) });
            }
        }
    }
}

/// Appends a range, joined to the last one where it follows it.
fn push(ranges: &mut Vec<OffsetRange>, range: OffsetRange) {
    if let Some(last) = ranges.last_mut()
        && end(last) == range.first
        && let Some(count) = last.count.checked_add(range.count)
    {
        last.count = count;
    } else {
        ranges.push(range);
    }
}

/// Sorts ranges, and joins those that touch or overlap.
fn merge(ranges: &mut Vec<OffsetRange>) {
    if ranges.len() < 2 {
        return;
    }
    ranges.sort_unstable_by_key(|range| range.first);
    let mut merged: Vec<OffsetRange> = Vec::with_capacity(ranges.len());
    for mut range in ranges.drain(..) {
        let seen_up_to = merged.last().map_or(0, end);
        if end(&range) <= seen_up_to {
            continue;
        }
        let overlap = seen_up_to.saturating_sub(range.first);
        range.first += overlap;
        range.count -= u32::try_from(overlap).expect("an overlap is shorter than the range");
        push(&mut merged, range);
    }
    *ranges = merged;
}

fn end(range: &OffsetRange) -> u64 {
    range.first + u64::from(range.count)
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
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*};

    use super::*;

    fn range(first: u64, count: u32) -> OffsetRange {
        OffsetRange { first, count }
    }

    fn offsets(ranges: &[OffsetRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.first..end(range)).collect()
    }

    proptest! {
        #[test]
        fn merging_keeps_the_offsets_and_leaves_nothing_to_merge(
            ranges in collection::vec((0_u64..200, 1_u32..20), 0..30),
        ) {
            let mut ranges: Vec<_> = ranges.into_iter().map(|(first, count)| range(first, count)).collect();
            let before = offsets(&ranges);
            merge(&mut ranges);
            prop_assert_eq!(offsets(&ranges), before);
            prop_assert!(ranges.windows(2).all(|pair| end(&pair[0]) < pair[1].first));
        }
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

        let (_, _, released_count) =
            settlements.answer(SettleResult { settle_id: 2, failures: Vec::new() }).unwrap();
        assert_eq!(released_count, 1);
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
        let (outcome, answer, _) = settlements.answer(result).unwrap();
        outcome.set(answer);
        let results = futures::future::join_all(settled).await;
        assert!(matches!(&results[..], [Ok(()), Err(SettleError::LeaseLost(_)), Ok(())]), "{results:?}");
    }

    #[tokio::test]
    async fn a_lost_stream_tells_the_sent_from_the_unsent() {
        let mut settlements = Settlements::default();
        let sent = settlements.add(Settle::Ack, Offset::ZERO, 1);
        settlements.next_to_send().unwrap();
        let unsent = settlements.add(Settle::Nack { delay: Duration::ZERO }, Offset::new(1), 1);
        let cause = Cause::new(Code::Unavailable, Reason::Unspecified, "gone");
        for (outcome, answer) in settlements.lose(&cause) {
            outcome.set(answer);
        }
        assert!(matches!(sent.await, Err(SettleError::OutcomeUnknown(_))));
        assert!(matches!(unsent.await, Err(SettleError::LeaseLost(_))));
        assert!(settlements.is_idle());
    }
}
