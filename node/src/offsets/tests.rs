//! Runs and sets against a map and a set that hold every offset.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skein_proto::ids::Offset;

use super::{OffsetRange, OffsetRuns, OffsetSet};

/// Offsets stay below this, so that ranges meet often.
const OFFSETS: u64 = 40;

#[derive(Debug, Clone)]
enum Step {
    Insert(OffsetRange, u8),
    Remove(OffsetRange),
    TakeFirst(u64),
}

fn range() -> impl Strategy<Value = OffsetRange> {
    (0..OFFSETS, 0_u64..12).prop_map(|(first, count)| OffsetRange::new(Offset::new(first), count))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (range(), 0_u8..3).prop_map(|(range, value)| Step::Insert(range, value)),
        3 => range().prop_map(Step::Remove),
        1 => (0_u64..6).prop_map(Step::TakeFirst),
    ]
}

fn offsets(range: OffsetRange) -> impl Iterator<Item = u64> {
    range.first.get()..range.end().get()
}

proptest! {
    #[test]
    fn runs_match_a_map(steps in prop::collection::vec(step(), 0..60), probe in range()) {
        let mut runs = OffsetRuns::new();
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Insert(range, value) => {
                    runs.insert(range, value);
                    model.extend(offsets(range).map(|offset| (offset, value)));
                }
                Step::Remove(range) => {
                    runs.remove(range);
                    model.retain(|&offset, _| !range.contains(Offset::new(offset)));
                }
                Step::TakeFirst(count_max) => {
                    let Some((range, value)) = runs.take_first(count_max) else {
                        prop_assert!(count_max == 0 || model.is_empty());
                        continue;
                    };
                    prop_assert!((1..=count_max).contains(&range.count));
                    for offset in offsets(range) {
                        prop_assert_eq!(model.pop_first(), Some((offset, value)));
                    }
                }
            }
            prop_assert_eq!(runs.len(), model.len() as u64);
        }

        let spread: BTreeMap<_, _> =
            runs.iter().flat_map(|(range, &value)| offsets(range).map(move |offset| (offset, value))).collect();
        prop_assert_eq!(&spread, &model);
        let kept: Vec<_> = runs.iter().collect();
        for pair in kept.windows(2) {
            let touching = pair[0].0.end() == pair[1].0.first;
            prop_assert!(pair[0].0.end() <= pair[1].0.first && !(touching && pair[0].1 == pair[1].1));
        }
        for offset in 0..OFFSETS {
            let found = runs.get(Offset::new(offset)).map(|(_, &value)| value);
            prop_assert_eq!(found, model.get(&offset).copied());
        }
        let inside: Vec<_> = runs.overlapping(probe).flat_map(|(range, _)| offsets(range)).collect();
        let outside: Vec<_> = runs.gaps(probe).flat_map(offsets).collect();
        let (expected_inside, expected_outside): (Vec<_>, Vec<_>) =
            offsets(probe).partition(|offset| model.contains_key(offset));
        prop_assert_eq!((inside, outside), (expected_inside, expected_outside));
        prop_assert_eq!(runs.end().map(Offset::get), model.last_key_value().map(|(offset, _)| offset + 1));
    }

    #[test]
    fn set_matches_a_set(steps in prop::collection::vec((any::<bool>(), range()), 0..60)) {
        let mut set = OffsetSet::new();
        let mut model = BTreeSet::new();
        for (insert, range) in steps {
            if insert {
                set.insert(range);
                model.extend(offsets(range));
            } else {
                set.remove(range);
                model.retain(|&offset| !range.contains(Offset::new(offset)));
            }
        }
        prop_assert_eq!(set.len(), model.len() as u64);
        for offset in 0..OFFSETS {
            prop_assert_eq!(set.contains(Offset::new(offset)), model.contains(&offset));
            let gap = (offset..).find(|candidate| !model.contains(candidate));
            prop_assert_eq!(Some(set.first_gap(Offset::new(offset)).get()), gap);
        }
    }
}

#[test]
fn ranges_end_at_the_last_offset() {
    let endless = OffsetRange::new(Offset::new(u64::MAX - 3), u64::MAX);
    assert_eq!(endless.end(), Offset::new(u64::MAX));
    let mut set = OffsetSet::new();
    set.insert(endless);
    assert_eq!(set.len(), 3);
    set.remove(OffsetRange::new(Offset::ZERO, u64::MAX));
    assert!(set.is_empty());
}
