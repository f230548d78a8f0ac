//! What of an earlier leader's deliveries goes on: consumers come back, and are waited for.

use skein_proto::limits::GROUP_CONSUMERS_MAX;

use super::{Dispatcher, kept_parts};
use crate::{
    dispatch::{Claim, ConsumerId, GroupKey, Now, Stored, consumer::Lease, group::Work},
    offsets::OffsetSet,
};

/// A consumer claims what it holds, which is within its credit, and what it has settled without an answer: each of
/// those settlements had made room for as much again.
const CLAIMED_CREDITS_MAX: u32 = 8;

/// What goes on for a consumer that has come back.
#[derive(Debug)]
pub struct Resumption {
    /// What it holds again.
    pub held: OffsetSet,
    /// The consumers that it was, which have ended.
    pub former: Vec<ConsumerId>,
}

impl Dispatcher {
    /// Gives a consumer that has come back what it held on a stream that is lost, where nobody else has it and it is
    /// not settled; no more than a few times its credit. The consumer that it was takes and settles nothing any more:
    /// what it held is as if it had never been delivered.
    ///
    /// A group that is held back is from now on held back until `others_until_ms` at most, by the steady clock, for
    /// the others to come back as well; no longer when all have.
    pub fn resume(
        &mut self,
        id: ConsumerId,
        claim: &Claim,
        now: Now,
        others_until_ms: u64,
        stored: &dyn Stored,
    ) -> Resumption {
        let former = self.former(id, claim);
        for former in &former {
            self.leave(*former, &OffsetSet::new(), stored);
        }
        let mut resumed = Resumption { held: OffsetSet::new(), former };
        // It may hold what was not due yet when this leader took over.
        self.release_due(now.wall_ms, stored);
        let Some(consumer) = self.consumers.get_mut(&id) else { return resumed };
        let key = consumer.key;
        let Some(group) = self.groups.get_mut(&key) else { return resumed };
        let until_ms = now.steady_ms.saturating_add(u64::from(group.rules().lease_ms));
        let most = consumer.credit.messages.saturating_mul(CLAIMED_CREDITS_MAX);
        for range in &claim.held {
            let left = most.saturating_sub(u32::try_from(consumer.held().0).unwrap_or(u32::MAX));
            for Work { range, attempt } in group.resume(*range, left) {
                for (part, bytes) in kept_parts(group, key.queue, range, stored) {
                    consumer.grant(Lease { range: part, until_ms, attempt, bytes });
                    self.lease_ends.insert((until_ms, id, part.first));
                    resumed.held.insert(part);
                }
            }
        }
        // One that was never there, such as one whose first attempt has failed, is nobody who is waited for.
        if claim.before != ConsumerId::NOBODY {
            consumer.before = Some(claim.before);
            group.back.insert(claim.before, id);
        }
        let expected = usize::try_from(claim.group_consumers).unwrap_or(usize::MAX).min(GROUP_CONSUMERS_MAX);
        group.back_expected = group.back_expected.max(expected);
        let are_all_back = (1..=group.back.len()).contains(&group.back_expected);
        let hold_until_ms = if are_all_back { now.steady_ms } else { others_until_ms };
        if group.held_back_until_ms > hold_until_ms {
            self.holds.remove(&(group.held_back_until_ms, key));
            group.held_back_until_ms = hold_until_ms;
            self.holds.insert((hold_until_ms, key));
        }
        resumed
    }

    /// The consumers that this one was, as far as they are still there: on a stream that is lost, and on one that it
    /// never heard from.
    fn former(&self, id: ConsumerId, claim: &Claim) -> Vec<ConsumerId> {
        let Some(key) = self.group_of(id) else { return Vec::new() };
        let unheard = self.groups.get(&key).and_then(|group| group.back.get(&claim.before).copied());
        let former = [Some(claim.before), unheard].into_iter().flatten();
        former.filter(|former| *former != id && self.group_of(*former) == Some(key)).collect()
    }

    /// How many consumers of a group there were with an earlier leader, for as long as they are waited for.
    #[must_use]
    pub fn expected(&self, key: GroupKey) -> u32 {
        let held_back = self.groups.get(&key).filter(|group| group.held_back_until_ms > 0);
        held_back.map_or(0, |group| u32::try_from(group.back_expected).unwrap_or(u32::MAX))
    }

    /// The groups that were held back, and are no more since the last call.
    pub fn take_released(&mut self) -> Vec<GroupKey> {
        std::mem::take(&mut self.released)
    }
}
