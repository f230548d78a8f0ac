//! Consecutive offsets.

use std::{cmp, fmt};

use skein_proto::ids::Offset;

/// The offsets `first`, `first + 1`, ... , `count` of them.
///
/// Ranges come from clients, so that nothing here overflows: one that would reach past the last possible offset ends
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetRange {
    /// The first offset.
    pub first: Offset,
    /// How many offsets there are.
    pub count: u64,
}

impl OffsetRange {
    /// The range of `count` offsets that starts at `first`.
    #[must_use]
    pub const fn new(first: Offset, count: u64) -> Self {
        Self { first, count }
    }

    /// The range from `first` up to, not including, `end`; empty when `end` does not come after `first`.
    #[must_use]
    pub const fn between(first: Offset, end: Offset) -> Self {
        Self { first, count: end.get().saturating_sub(first.get()) }
    }

    /// The offset after the last one.
    #[must_use]
    pub const fn end(self) -> Offset {
        Offset::new(self.first.get().saturating_add(self.count))
    }

    /// Whether there is no offset in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// Whether `offset` is one of its offsets.
    #[must_use]
    pub fn contains(self, offset: Offset) -> bool {
        self.first <= offset && offset < self.end()
    }

    /// The offsets that are in both ranges.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::between(cmp::max(self.first, other.first), cmp::min(self.end(), other.end()))
    }

    /// The part before `offset`, and the part from `offset` on.
    #[must_use]
    pub fn split_at(self, offset: Offset) -> (Self, Self) {
        let middle = offset.clamp(self.first, self.end());
        (Self::between(self.first, middle), Self::between(middle, self.end()))
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end())
    }
}
