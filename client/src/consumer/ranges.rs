//! Ranges of offsets as they are sent, put together.

use skein_proto::node::OffsetRange;

/// Appends a range, joined to the last one where it follows it.
pub(super) fn push(ranges: &mut Vec<OffsetRange>, range: OffsetRange) {
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
pub(super) fn merge(ranges: &mut Vec<OffsetRange>) {
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

/// The offset after its last message.
pub(super) fn end(range: &OffsetRange) -> u64 {
    range.first + u64::from(range.count)
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
}
