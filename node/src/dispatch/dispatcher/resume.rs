//! What of an earlier leader's deliveries goes on: consumers come back, and are waited for.

use super::{Dispatcher, kept_parts};
use crate::{
    dispatch::{Claim, ConsumerId, GroupKey, Now, Stored, consumer::Lease, group::Work},
    offsets::OffsetSet,
};

impl Dispatcher {
    /// Gives a consumer that has come back what it held on a stream that is lost, where nobody else has it and it is
    /// not settled; no more than its credit allows. Says what that is. A group that is held back is from now on held
    /// back until `others_until_ms` at most, by the steady clock, for the others to come back as well; no longer when
    /// all have.
    pub fn resume(
        &mut self,
        id: ConsumerId,
        claim: &Claim,
        now: Now,
        others_until_ms: u64,
        stored: &dyn Stored,
    ) -> OffsetSet {
        let mut resumed = OffsetSet::new();
        // It may hold what was not due yet when this leader took over.
        self.release_due(now.wall_ms, stored);
        let Some(consumer) = self.consumers.get_mut(&id) else { return resumed };
        let key = consumer.key;
        let Some(group) = self.groups.get_mut(&key) else { return resumed };
        let until_ms = now.steady_ms.saturating_add(u64::from(group.rules().lease_ms));
        for range in &claim.held {
            // What it held was within its credit.
            for Work { range, attempt } in group.resume(*range, consumer.messages_left()) {
                for (part, bytes) in kept_parts(group, key.queue, range, stored) {
                    consumer.grant(Lease { range: part, until_ms, attempt, bytes });
                    self.lease_ends.insert((until_ms, id, part.first));
                    resumed.insert(part);
                }
            }
        }
        group.back_count += u32::from(!std::mem::replace(&mut consumer.is_back, true));
        group.back_expected = group.back_expected.max(claim.group_consumers);
        let are_all_back = (1..=group.back_count).contains(&group.back_expected);
        let hold_until_ms = if are_all_back { now.steady_ms } else { others_until_ms };
        if group.held_back_until_ms > hold_until_ms {
            self.holds.remove(&(group.held_back_until_ms, key));
            group.held_back_until_ms = hold_until_ms;
            self.holds.insert((hold_until_ms, key));
        }
        resumed
    }

    /// How many consumers a group has. While it is held back, those count that may still come back.
    #[must_use]
    pub fn company(&self, key: GroupKey) -> u32 {
        self.groups.get(&key).map_or(0, |group| {
            let attached = u32::try_from(group.attached_count).unwrap_or(u32::MAX);
            if group.held_back_until_ms > 0 { attached.max(group.back_expected) } else { attached }
        })
    }
}
