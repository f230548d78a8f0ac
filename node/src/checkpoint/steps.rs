//! Large changes of a checkpoint, in steps that are small for sled and all or nothing together.
//!
//! What sled replaces it frees little by little, as often as it is called and not as much as it is given: of a batch
//! with thousands of records it never frees most. So a large change is first written down, in a few large values, then
//! made in small batches, and made again at the next start when that was cut off.

use skein_proto::ids::ShardId;

use super::POSITION_KEY;

/// The most records that are changed in one batch. Of twice as many nothing is left behind either; of thousands most
/// is.
pub(super) const BATCH_RECORDS_MAX: usize = 64;

/// In how many values a large change is written down, at most.
const CHUNKS_MAX: usize = 32;

/// A changed record; deleted without a value.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Where a shard's large changes are written down before they are made.
pub(super) fn notes_tree(db: &sled::Db, shard: ShardId) -> sled::Result<sled::Tree> {
    db.open_tree(format!("shard-{shard}-changes"))
}

/// Makes a change, all or nothing, and waits until it is on disk.
pub(super) fn change(
    db: &sled::Db,
    tree: &sled::Tree,
    shard: ShardId,
    mut changes: Vec<Change>,
    position: &[u8],
) -> sled::Result<()> {
    // Last, so that it is never there without the others.
    changes.push((POSITION_KEY.to_vec(), Some(position.to_vec())));
    if changes.len() <= BATCH_RECORDS_MAX {
        tree.apply_batch(batch_of(&changes))?;
        return db.flush().map(drop);
    }
    let notes = notes_tree(db, shard)?;
    note(&notes, &changes)?;
    db.flush()?;
    make(db, tree, &notes, &changes)
}

/// Makes the change again that was written down and may not have been made as a whole.
pub(super) fn finish(db: &sled::Db, tree: &sled::Tree, shard: ShardId) -> sled::Result<()> {
    let notes = notes_tree(db, shard)?;
    let mut changes = Vec::new();
    for note in notes.iter().values() {
        changes.extend(decode(&note?)?);
    }
    if changes.is_empty() { Ok(()) } else { make(db, tree, &notes, &changes) }
}

fn make(db: &sled::Db, tree: &sled::Tree, notes: &sled::Tree, changes: &[Change]) -> sled::Result<()> {
    for changes in changes.chunks(BATCH_RECORDS_MAX) {
        tree.apply_batch(batch_of(changes))?;
    }
    db.flush()?;
    // On disk with whatever is flushed next, and so before any later change.
    notes.clear()
}

/// In one batch: all of it is there or nothing.
fn note(notes: &sled::Tree, changes: &[Change]) -> sled::Result<()> {
    let mut batch = sled::Batch::default();
    for (number, changes) in (0_u32..).zip(changes.chunks(changes.len().div_ceil(CHUNKS_MAX))) {
        batch.insert(&number.to_be_bytes(), encode(changes));
    }
    notes.apply_batch(batch)
}

fn batch_of(changes: &[Change]) -> sled::Batch {
    let mut batch = sled::Batch::default();
    for (key, value) in changes {
        match value {
            Some(value) => batch.insert(&key[..], &value[..]),
            None => batch.remove(&key[..]),
        }
    }
    batch
}

/// Each as the lengths of its key and its value, the latter plus one and 0 for none, and both.
fn encode(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in changes {
        let value_mark = value.as_ref().map_or(0, |value| value.len() as u64 + 1);
        bytes.extend((key.len() as u64).to_be_bytes());
        bytes.extend(value_mark.to_be_bytes());
        bytes.extend(key);
        bytes.extend(value.iter().flatten());
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> sled::Result<Vec<Change>> {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let change = take_change(&mut bytes);
        changes.push(
            change.ok_or_else(|| sled::Error::Unsupported("a change is not written down whole".into()))?,
        );
    }
    Ok(changes)
}

fn take_change(bytes: &mut &[u8]) -> Option<Change> {
    let (key_len, rest) = bytes.split_first_chunk()?;
    let (value_mark, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*key_len)).ok()?)?;
    let value_mark = usize::try_from(u64::from_be_bytes(*value_mark)).ok()?;
    let (value, rest) = rest.split_at_checked(value_mark.saturating_sub(1))?;
    *bytes = rest;
    Some((key.to_vec(), (value_mark > 0).then(|| value.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::{super::Checkpoints, *};

    const SHARD: ShardId = ShardId::new(3);

    fn puts(count: u32, value: &[u8]) -> Vec<Change> {
        (0..count).map(|key| (key.to_be_bytes().to_vec(), Some(value.to_vec()))).collect()
    }

    #[test]
    fn changes_come_back_as_they_were_written_down() {
        let changes = vec![
            (b"a".to_vec(), Some(b"one".to_vec())),
            (b"b".to_vec(), None),
            (b"c".to_vec(), Some(Vec::new())),
        ];
        let encoded = encode(&changes);
        assert_eq!(decode(&encoded).unwrap(), changes);
        for cut in [1, 8, 16, encoded.len() - 1] {
            assert!(decode(&encoded[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_large_change_that_was_cut_off_is_made_whole_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Checkpoints::open(dir.path()).unwrap();
            let checkpoint = store.shard(SHARD).unwrap();
            checkpoint.save(b"old", puts(500, b"old")).unwrap();
            let mut changes = puts(400, b"new");
            changes.push((450_u32.to_be_bytes().to_vec(), None));
            changes.push((POSITION_KEY.to_vec(), Some(b"new".to_vec())));
            // As far as it got: written down, and begun.
            note(&notes_tree(&store.db, SHARD).unwrap(), &changes).unwrap();
            checkpoint.tree().apply_batch(batch_of(&changes[..BATCH_RECORDS_MAX])).unwrap();
            store.db.flush().unwrap();
        }
        for _ in 0..2 {
            let (position, records) = Checkpoints::reopen(dir.path()).shard(SHARD).unwrap().load();
            assert_eq!(position.as_deref(), Some(&b"new"[..]));
            let count = |value: &[u8]| records.iter().filter(|record| record.1 == value).count();
            assert_eq!((count(b"new"), count(b"old")), (400, 99));
        }
    }

    #[test]
    fn a_change_that_was_made_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        {
            let checkpoint = Checkpoints::open(dir.path()).unwrap().shard(SHARD).unwrap();
            checkpoint.save(b"large", puts(500, b"large")).unwrap();
            checkpoint.save(b"small", puts(1, b"small")).unwrap();
        }
        let (position, records) = Checkpoints::reopen(dir.path()).shard(SHARD).unwrap().load();
        assert_eq!((position.as_deref(), records.len()), (Some(&b"small"[..]), 500));
        assert_eq!(records[0].1, b"small");
    }
}
