//! Parts of entries that outlive the entries: what they are, and how they are written.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A part of an entry's payload, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The entry.
    pub index: u64,
    /// Where it begins, in bytes from the start of the payload.
    pub position: u32,
    /// How many bytes it has.
    pub length: u32,
}

/// What there is of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptEntry {
    /// Its place in the shard's log.
    pub index: u64,
    /// The term that it was created in.
    pub term: u64,
    /// The parts that there are.
    pub parts: Parts,
}

/// Parts of one payload, by rising position. One part at position 0 and nothing else is the whole payload: whoever
/// keeps less of an entry than all of it never keeps its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts(Vec<(u32, Bytes)>);

impl Parts {
    /// The parts at these positions; `None` when they do not rise, overlap, or reach past 4 GiB.
    #[must_use]
    pub fn new(parts: Vec<(u32, Bytes)>) -> Option<Self> {
        let mut free_from = 0;
        for (position, bytes) in &parts {
            if *position < free_from {
                return None;
            }
            free_from = position.checked_add(u32::try_from(bytes.len()).ok()?)?;
        }
        Some(Self(parts))
    }

    /// A whole payload.
    #[must_use]
    pub fn whole(payload: Bytes) -> Self {
        Self(vec![(0, payload)])
    }

    /// The whole payload, if it is here.
    #[must_use]
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.0[..] {
            [(0, payload)] => Some(payload),
            _ => None,
        }
    }

    /// Whether the whole payload is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.as_whole().is_some()
    }

    /// These bytes of the payload, if they are here. Those of several parts that lie side by side are copied.
    #[must_use]
    pub fn get(&self, position: u32, length: u32) -> Option<Bytes> {
        let after = self.0.partition_point(|(start, _)| *start <= position);
        let parts = self.0.get(after.checked_sub(1)?..)?;
        let (start, bytes) = parts.first()?;
        let from = (position - start) as usize;
        let to = from.checked_add(length as usize)?;
        if to <= bytes.len() {
            return Some(bytes.slice(from..to));
        }
        let (mut reached, end) = (position, position.checked_add(length)?);
        let mut joined = BytesMut::new();
        for (start, bytes) in parts {
            let from = reached.checked_sub(*start)? as usize;
            let to = bytes.len().min((end - start) as usize);
            joined.extend_from_slice(bytes.get(from..to)?);
            reached = start + u32::try_from(to).ok()?;
            if reached == end {
                return Some(joined.freeze());
            }
        }
        None
    }

    /// Each part's position and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Bytes)> {
        self.0.iter().map(|(position, bytes)| (*position, bytes))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// As a record has them.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + 8 * self.0.len() + self.bytes());
        out.put_u32_le(length(self.0.len()));
        for (position, bytes) in &self.0 {
            out.put_u32_le(*position);
            out.put_u32_le(length(bytes.len()));
        }
        self.0.iter().for_each(|(_, bytes)| out.put_slice(bytes));
        out.into()
    }

    /// What [`encode`](Self::encode) made.
    pub(super) fn decode(record: &Bytes) -> Option<Self> {
        let mut table = &record[..];
        let count = table.try_get_u32_le().ok()? as usize;
        let mut at = count.checked_mul(8)?.checked_add(4)?;
        let mut parts = Vec::new();
        for _ in 0..count {
            let position = table.try_get_u32_le().ok()?;
            let end = at.checked_add(table.try_get_u32_le().ok()? as usize)?;
            if end > record.len() {
                return None;
            }
            parts.push((position, record.slice(at..end)));
            at = end;
        }
        if at == record.len() { Self::new(parts) } else { None }
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("parts lie in a segment, which is below 4 GiB")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn gives_what_it_has_and_nothing_else() {
        let parts =
            Parts::new(vec![(3, Bytes::from_static(b"abc")), (6, Bytes::from_static(b"de"))]).unwrap();
        assert_eq!(parts.get(3, 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(parts.get(4, 1).as_deref(), Some(&b"b"[..]));
        assert_eq!(parts.get(6, 2).as_deref(), Some(&b"de"[..]));
        assert_eq!(parts.get(8, 0).as_deref(), Some(&b""[..]));
        assert_eq!(parts.get(5, 2).as_deref(), Some(&b"cd"[..]), "they lie side by side");
        assert_eq!(parts.get(3, 5).as_deref(), Some(&b"abcde"[..]));
        for (position, length) in [(2, 1), (3, 6), (5, 4), (7, 2), (9, 0), (5, u32::MAX)] {
            assert_eq!(parts.get(position, length), None, "{length} at {position}");
        }
        assert!(!parts.is_whole() && Parts::whole(Bytes::new()).is_whole());
        let apart = Parts::new(vec![(0, Bytes::from_static(b"ab")), (3, Bytes::from_static(b"de"))]).unwrap();
        assert_eq!(apart.get(1, 3), None, "one is missing between them");
        let overlapping = vec![(3, Bytes::from_static(b"abc")), (5, Bytes::from_static(b"de"))];
        assert_eq!(Parts::new(overlapping), None);
    }

    proptest! {
        #[test]
        fn comes_back_as_it_went(
            parts in prop::collection::vec((0u32..9, prop::collection::vec(any::<u8>(), 0..9)), 0..9),
        ) {
            let mut position = 0;
            let parts = parts.into_iter().map(|(gap, bytes)| {
                let at = position + gap;
                position = at + u32::try_from(bytes.len()).unwrap();
                (at, Bytes::from(bytes))
            });
            let parts = Parts::new(parts.collect()).unwrap();
            prop_assert_eq!(Parts::decode(&parts.encode()), Some(parts));
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Parts::decode(&bytes.into());
        }
    }
}
