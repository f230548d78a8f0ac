//! Partitions of a queue: what they are called, and which one a key belongs to. Clients and nodes must agree on both.

use crate::limits::PARTITIONS_MAX;

/// The name of a partition, which is a queue.
#[must_use]
pub fn name(queue: &str, partition: u32) -> String {
    format!("{queue}/{partition}")
}

/// The queue that a name is a partition of, and its number; nothing for other names.
#[must_use]
pub fn parse(name: &str) -> Option<(&str, u32)> {
    let (queue, number) = name.rsplit_once('/')?;
    let partition: u32 = number.parse().ok().filter(|partition| *partition < PARTITIONS_MAX)?;
    // One name for each: neither +1 nor 01.
    (partition.to_string() == number).then_some((queue, partition))
}

/// What decides to which partition a message goes: its key; where it has none, its id, so that the partition finds it
/// that has it already; nothing for others, which go anywhere.
#[must_use]
pub fn spread_by<'a>(key: &'a [u8], message_id: &'a [u8]) -> Option<&'a [u8]> {
    [key, message_id].into_iter().find(|bytes| !bytes.is_empty())
}

/// Messages belong to several partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apart;

/// The one partition, of so many, of messages that are [spread by](spread_by) these; nothing where any will do.
///
/// # Errors
/// When there is no such partition.
///
/// # Panics
/// When there are none.
pub fn of_all<'a>(keys: impl Iterator<Item = &'a [u8]>, partitions: u32) -> Result<Option<u32>, Apart> {
    let mut wanted = keys.map(|key| of_key(key, partitions));
    let first = wanted.next();
    if wanted.all(|other| Some(other) == first) { Ok(first) } else { Err(Apart) }
}

/// The partition of a key, of so many. When there are more, a key stays where it is or goes to one of the new ones.
///
/// The jump consistent hash of Lamping and Veach (2014, <https://arxiv.org/abs/1406.2294>), of the key's CRC-32C.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a key needs a partition");
    let mut state = u64::from(crc32c::crc32c(key));
    let mut partition = 0;
    loop {
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // In whole numbers, which are the same everywhere.
        match u32::try_from(((u64::from(partition) + 1) << 31) / ((state >> 33) + 1)) {
            Ok(next) if next < partitions => partition = next,
            _ => return partition,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        assert_eq!(name("orders", 12), "orders/12");
        assert_eq!(parse("orders/12"), Some(("orders", 12)));
        assert_eq!(parse("a/b/0"), Some(("a/b", 0)));
        for other in ["orders", "orders/", "orders/x", "orders/01", "orders/+1", "orders/-1", "orders/256"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_spread_evenly_and_move_only_to_new_partitions() {
        let keys: Vec<_> = (0..10_000).map(|n| format!("key-{n}")).collect();
        for (before, after) in [(1, 2), (4, 5), (4, 16), (100, 256)] {
            let mut counts = vec![0; after as usize];
            for key in &keys {
                let (old, new) = (of_key(key.as_bytes(), before), of_key(key.as_bytes(), after));
                assert!(old == new || new >= before, "{key} went from {old} to {new}");
                counts[new as usize] += 1;
            }
            let fair = keys.len() / after as usize;
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least > fair / 3 && *most < fair * 3, "{least} to {most}, {fair} on average");
        }
    }

    #[test]
    fn messages_with_a_key_or_else_an_id_belong_together_or_do_not() {
        assert_eq!(spread_by(b"key", b"id"), Some(&b"key"[..]));
        assert_eq!(spread_by(b"", b"id"), Some(&b"id"[..]));
        assert_eq!(spread_by(b"", b""), None);
        let of = |keys: &[&'static str]| of_all(keys.iter().map(|key| key.as_bytes()), 8);
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["customer-1", "customer-1"]), Ok(Some(4)));
        assert_eq!(of(&["customer-1", "customer-2"]), Err(Apart));
    }

    /// They lie where they lie: another answer would send a key's messages past those that are there.
    #[test]
    fn keys_stay_where_they_are_from_one_version_to_the_next() {
        let of = |key: &str| [2, 3, 8, 256].map(|partitions| of_key(key.as_bytes(), partitions));
        assert_eq!(of(""), [0, 0, 0, 0]);
        assert_eq!((of("customer-1"), of("customer-2")), ([1, 1, 4, 83], [1, 2, 6, 165]));
    }
}
