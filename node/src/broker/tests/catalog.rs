//! What the catalog answers, and that it survives restarts.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{QueueId, ShardId};

use super::{meta, settings};
use crate::broker::{Catalog, CatalogCommand, CatalogOutcome, CatalogQueueRecord, Record, RecordKey};

fn create(name: &str, dead_letter_queue: Option<&str>) -> CatalogCommand {
    CatalogCommand::CreateQueue {
        name: name.into(),
        settings: settings(2, dead_letter_queue),
        shard_count: 2,
    }
}

fn delete(name: &str) -> CatalogCommand {
    CatalogCommand::DeleteQueue { name: name.into(), queue: None }
}

/// Applies each command in an entry of its own.
fn check(catalog: &mut Catalog, steps: impl IntoIterator<Item = (CatalogCommand, CatalogOutcome)>) {
    for (command, expected) in steps {
        assert_eq!(catalog.apply(meta(1, 0), &[command]), [expected]);
    }
}

const fn created(queue: u64, shard: u32) -> CatalogOutcome {
    CatalogOutcome::Created { queue: QueueId::new(queue), shard: ShardId::new(shard) }
}

const fn deleted(queue: u64, shard: u32) -> CatalogOutcome {
    CatalogOutcome::Deleted { queue: QueueId::new(queue), shard: ShardId::new(shard) }
}

#[test]
fn queues_go_where_the_fewest_are() {
    let mut catalog = Catalog::new();
    assert_eq!(catalog.next_queue(), QueueId::new(1));
    let steps = [
        (create("a", None), created(1, 1)),
        (create("b", None), created(2, 2)),
        (create("c", None), created(3, 1)),
        (delete("b"), deleted(2, 2)),
        (delete("b"), CatalogOutcome::NotFound),
        // The second shard is empty now, and ids go on.
        (create("b", None), created(4, 2)),
    ];
    check(&mut catalog, steps);
    assert_eq!(catalog.revision(), 5);
    assert_eq!(catalog.next_queue(), QueueId::new(5), "deleting a queue does not free its id");
    assert_eq!(catalog.queues().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(catalog.queues_after("b").map(|(name, _)| name).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_queue_that_exists_is_left_as_it_is() {
    let mut catalog = Catalog::new();
    let (queue, shard) = (QueueId::new(1), ShardId::new(1));
    let different = CatalogOutcome::ExistsDifferent { queue, shard, settings: settings(2, None) };
    let steps = [
        (create("a", None), created(1, 1)),
        (create("a", None), CatalogOutcome::Exists { queue, shard }),
        (create("a", Some("a")), different),
    ];
    check(&mut catalog, steps);
    assert_eq!(catalog.revision(), 1);
}

#[test]
fn dead_letter_queues_exist_as_long_as_they_are_named() {
    let steps = [
        (create("a", Some("a")), CatalogOutcome::DeadLetterQueueCycle),
        (create("a", Some("dead")), CatalogOutcome::DeadLetterQueueNotFound),
        (create("dead", None), created(1, 1)),
        (create("a", Some("dead")), created(2, 2)),
        (delete("dead"), CatalogOutcome::InUse { by: "a".into() }),
        (delete("a"), deleted(2, 2)),
        (delete("dead"), deleted(1, 1)),
    ];
    check(&mut Catalog::new(), steps);
}

proptest! {
    #[test]
    fn catalogs_survive_restarts(
        steps in vec((0..6_u8, prop::option::of(0..6_u8), any::<bool>(), any::<bool>()), 0..40)
    ) {
        let name = |number: u8| char::from(b'a' + number).to_string();
        let mut steady = Catalog::new();
        let mut restarted = Catalog::new();
        let mut store = BTreeMap::new();
        for (queue, dead, creates, restart) in steps {
            let dead = dead.map(name);
            let command = if creates { create(&name(queue), dead.as_deref()) } else { delete(&name(queue)) };
            let command = std::slice::from_ref(&command);
            prop_assert_eq!(steady.apply(meta(2, 0), command), restarted.apply(meta(2, 0), command));
            if restart {
                for (key, record) in restarted.take_changes() {
                    match record {
                        Some(record) => store.insert(key, record),
                        None => store.remove(&key),
                    };
                }
                restarted = Catalog::restore(store.clone().into_iter()).unwrap();
            }
            prop_assert_eq!(steady.records(), restarted.records());
            // Every dead-letter queue exists.
            for (_, queue) in steady.queues() {
                let dead = queue.settings.dead_letter_queue.as_deref();
                prop_assert!(dead.is_none_or(|dead| steady.queue(dead).is_some()));
            }
        }
    }
}

#[test]
fn two_queues_of_one_name_are_no_catalog() {
    let record = |queue| {
        let record = CatalogQueueRecord {
            name: "a".into(),
            shard: ShardId::new(1),
            settings: settings(1, None),
            settings_revision: 3,
        };
        (RecordKey::CatalogQueue { queue: QueueId::new(queue) }, Record::CatalogQueue(record))
    };
    assert!(Catalog::restore([record(1), record(2)].into_iter()).is_err());
}
