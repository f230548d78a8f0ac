//! What becomes of settlements whose stream was lost, once another one has begun.

use std::{collections::VecDeque, mem};

use skein_proto::{
    broker::Reason,
    node::{OffsetRange, SettleFailure, StreamExtend, StreamNack, StreamSettle},
};

use super::{Settlement, Settlements, Told};
use crate::consumer::held::Held;

/// What a node says of messages whose stream was lost, when another one begins.
#[derive(Debug, Default)]
pub(in crate::consumer) struct Resumed {
    /// What it was asked about.
    pub(in crate::consumer) asked: Held,
    /// What goes on.
    pub(in crate::consumer) held: Held,
    /// What is acked.
    pub(in crate::consumer) settled: Held,
    /// What was given up.
    pub(in crate::consumer) given_up: Held,
}

impl Settlements {
    /// Another stream goes on. Returns whom to tell what: nothing is left to be sent for them.
    pub(in crate::consumer) fn resume(&mut self, resumed: &Resumed) -> Vec<Told> {
        let mut emptied = VecDeque::new();
        for mut settlement in mem::take(&mut self.next).into_iter().chain(self.gathering.take()) {
            settlement.keep(resumed);
            if settlement.is_empty() {
                emptied.push_back(settlement);
            } else {
                self.next.push_back(settlement);
            }
        }
        let mut told = Vec::new();
        while let Some(Settlement { outcome, lost, .. }) = emptied.pop_front() {
            match emptied.iter_mut().find(|other| other.is_part_of(&outcome)) {
                Some(other) => other.lost.extend(lost),
                None => told.extend(self.conclude(outcome, lost)),
            }
        }
        told
    }
}

impl Settlement {
    /// Leaves what can still be settled. What was sent may have been settled by that.
    fn keep(&mut self, resumed: &Resumed) {
        let StreamSettle { acks, nacks, extends, .. } = mem::take(&mut self.request);
        for ack in acks {
            let (kept, missing) = resumed.held.split(&ack);
            self.request.acks.extend(kept);
            self.lose(without(&missing, &resumed.settled), resumed);
        }
        for nack in nacks {
            let (kept, missing) = resumed.held.split(&nack.offsets.unwrap_or_default());
            let kept = kept.into_iter().map(|offsets| StreamNack { offsets: Some(offsets), ..nack });
            self.request.nacks.extend(kept);
            let open = without(&without(&missing, &resumed.settled), &resumed.given_up);
            // What came back and is not held here is, or will be, delivered again: all that was asked for.
            if nack.reject || !self.was_sent {
                self.lose(open, resumed);
            }
        }
        for extend in extends {
            let (kept, missing) = resumed.held.split(&extend.offsets.unwrap_or_default());
            let kept = kept.into_iter().map(|offsets| StreamExtend { offsets: Some(offsets), ..extend });
            self.request.extends.extend(kept);
            self.lose(missing, resumed);
        }
    }

    /// Gives up what is neither held nor settled.
    fn lose(&mut self, parts: impl IntoIterator<Item = OffsetRange>, resumed: &Resumed) {
        for offsets in parts {
            let (reason, message) = match self.was_sent && !resumed.asked.has_all(&offsets) {
                true => (Reason::OutcomeUnknown, "the stream was lost before the answer came"),
                false => (Reason::LeaseLost, "the stream was lost, and the message delivered again"),
            };
            let message = message.to_owned();
            self.lost.push(SettleFailure { offsets: Some(offsets), reason: reason.into(), message });
        }
    }
}

fn without(ranges: &[OffsetRange], others: &Held) -> Vec<OffsetRange> {
    ranges.iter().flat_map(|range| others.split(range).1).collect()
}

#[cfg(test)]
mod tests {
    use skein_proto::{ids::Offset, node::SettleResult};

    use super::{super::Settle, *};
    use crate::error::SettleError;

    fn range(first: u64, count: u32) -> OffsetRange {
        OffsetRange { first, count }
    }

    #[tokio::test]
    async fn what_is_resumed_is_sent_again_and_the_rest_is_told_apart() {
        let mut settlements = Settlements::default();
        let nack = Settle::Nack { delay: None };
        let kinds = [Settle::Ack, Settle::Ack, Settle::Ack, nack, Settle::Reject, Settle::Ack];
        let add = |settlements: &mut Settlements, offset: u64| {
            let kinds = kinds[usize::try_from(offset % 10).unwrap()];
            settlements.add(kinds, Offset::new(offset), 1)
        };
        let sent = [0, 1, 2, 3, 4, 5].map(|offset| add(&mut settlements, offset));
        settlements.next_to_send().unwrap();
        let unsent = [10, 11, 12, 13, 14].map(|offset| add(&mut settlements, offset));
        settlements.suspend();
        let resumed = Resumed {
            asked: Held::of(&[range(0, 5), range(10, 5)]),
            held: Held::of(&[range(1, 1), range(11, 1)]),
            settled: Held::of(&[range(2, 1), range(12, 1)]),
            given_up: Held::of(&[range(10, 1), range(14, 1)]),
        };
        let told = settlements.resume(&resumed);
        assert!(told.is_empty(), "of both something is left to be sent");
        let mut resent = Vec::new();
        while let Some(request) = settlements.next_to_send() {
            resent.extend(request.acks.clone());
            let result = SettleResult { settle_id: request.settle_id, failures: Vec::new() };
            let (outcome, answer) = settlements.answer(result).unwrap();
            outcome.set(answer);
        }
        assert_eq!(resent, [range(1, 1), range(11, 1)]);
        let reason = |settled: Result<(), SettleError>| settled.err().map(|error| error.cause().reason);
        let reasons = |all: Vec<_>| all.into_iter().map(reason).collect::<Vec<_>>();
        let (lost, unknown) = (Some(Reason::LeaseLost), Some(Reason::OutcomeUnknown));
        let sent = reasons(futures::future::join_all(sent).await);
        assert_eq!(sent, [lost, None, None, None, lost, unknown]);
        let unsent = reasons(futures::future::join_all(unsent).await);
        assert_eq!(unsent, [lost, None, None, lost, None]);
        assert!(settlements.is_idle());
    }
}
