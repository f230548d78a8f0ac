//! What the catalog answers, and that it survives restarts.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use skein_proto::ids::{NodeId, QueueId, ShardId};

use super::{meta, settings};
use crate::broker::{
    Catalog, CatalogCommand, CatalogOutcome, CatalogQueueRecord, NodeAddresses, NodeCommand, Record,
    RecordKey, Settings,
};

fn create(name: &str, dead_letter_queue: Option<&str>) -> CatalogCommand {
    CatalogCommand::CreateQueue {
        name: name.into(),
        settings: settings(2, dead_letter_queue),
        shard_count: 2,
        colocated_with: None,
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

#[test]
fn topics_name_queues_that_exist() {
    let topic = |alternate: Option<&str>| CatalogCommand::CreateTopic {
        name: "events".into(),
        alternate: alternate.map(str::to_owned),
    };
    let bind = |queue: &str, filter: u8| CatalogCommand::Bind {
        topic: "events".into(),
        queue: queue.into(),
        filter: vec![filter],
    };
    let unbind = |queue: &str, filter: u8| CatalogCommand::Unbind {
        topic: "events".into(),
        queue: queue.into(),
        filter: vec![filter],
    };
    let mut catalog = Catalog::new();
    let steps = [
        (bind("a", 1), CatalogOutcome::NotFound),
        (create("a", None), created(1, 1)),
        (create("b", None), created(2, 2)),
        (bind("a", 1), CatalogOutcome::TopicNotFound),
        (topic(Some("c")), CatalogOutcome::NotFound),
        (topic(Some("b")), CatalogOutcome::TopicCreated),
        (topic(None), CatalogOutcome::TopicExists { alternate: Some("b".into()) }),
        (create("events", None), CatalogOutcome::NameTaken),
        (CatalogCommand::CreateTopic { name: "a".into(), alternate: None }, CatalogOutcome::NameTaken),
        (bind("a", 1), CatalogOutcome::TopicChanged),
        (bind("a", 1), CatalogOutcome::TopicUnchanged),
        (bind("a", 2), CatalogOutcome::TopicChanged),
        (unbind("a", 2), CatalogOutcome::TopicChanged),
        (unbind("a", 2), CatalogOutcome::TopicUnchanged),
        (delete("b"), CatalogOutcome::InUseByTopic { by: "events".into() }),
        (delete("a"), deleted(1, 1)),
        (
            CatalogCommand::UpdateTopic { name: "events".into(), alternate: None },
            CatalogOutcome::TopicChanged,
        ),
        (delete("b"), deleted(2, 2)),
    ];
    check(&mut catalog, steps);
    assert!(catalog.topic("events").unwrap().bindings.is_empty(), "its queue is gone");
    let gone = CatalogCommand::DeleteTopic { name: "events".into() };
    let steps = [(gone.clone(), CatalogOutcome::TopicDeleted), (gone, CatalogOutcome::TopicNotFound)];
    check(&mut catalog, steps);
}

fn found() -> NodeCommand {
    let founder = |id: u64| {
        let name = format!("node-{id}");
        (NodeId::new(id), NodeAddresses { grpc: name.clone(), http: name.clone(), clients: name })
    };
    NodeCommand::Found { nodes: (1..=3).map(founder).collect() }
}

proptest! {
    #[test]
    fn catalogs_survive_restarts(
        steps in vec((0..6_u8, prop::option::of(0..6_u8), 0..12_u8, any::<bool>()), 0..60)
    ) {
        let name = |number: u8| char::from(b'a' + number).to_string();
        let mut steady = Catalog::new();
        let mut restarted = Catalog::new();
        let mut store = BTreeMap::new();
        for (queue, dead, what, restart) in steps {
            let dead = dead.map(name);
            let (topic, filter) = (name(queue % 3 + 4), vec![queue % 2; usize::from(queue % 2)]);
            let command = match what {
                0..=2 => create(&name(queue), dead.as_deref()),
                3 => delete(&name(queue)),
                4 => CatalogCommand::CreateTopic { name: topic, alternate: dead },
                5 if dead.is_none() => CatalogCommand::DeleteTopic { name: topic },
                5 => CatalogCommand::UpdateTopic { name: topic, alternate: dead },
                6 => CatalogCommand::Bind { topic, queue: dead.unwrap_or_default(), filter },
                7 => CatalogCommand::Unbind { topic, queue: dead.unwrap_or_default(), filter },
                8 => CatalogCommand::Node(found()),
                9 => CatalogCommand::Node(NodeCommand::Invite {
                    token: steady.revision().to_string(),
                    replaces: dead.map(|_| NodeId::new(u64::from(queue))),
                }),
                10 => CatalogCommand::Node(NodeCommand::Join {
                    token: steady.revision().saturating_sub(1).to_string(),
                    directory: topic,
                    addresses: NodeAddresses::default(),
                }),
                _ if dead.is_some() => {
                    CatalogCommand::Node(NodeCommand::Forget { node: NodeId::new(u64::from(queue)) })
                }
                _ => CatalogCommand::Node(NodeCommand::Remove { node: NodeId::new(u64::from(queue)) }),
            };
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
            // No name is a topic's and a queue's, and what a topic names exists.
            for topic in steady.topics_after("") {
                prop_assert!(steady.queue(&topic.name).is_none());
                let queues = topic.bindings.iter().map(|binding| binding.queue).chain(topic.alternate);
                for queue in queues {
                    prop_assert!(steady.queue_name(queue).is_some());
                }
            }
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

fn partitioned(name: &str, partitions: u32) -> CatalogCommand {
    let settings = Settings { partitions, ..settings(2, None) };
    CatalogCommand::CreateQueue { name: name.into(), settings, shard_count: 2, colocated_with: None }
}

fn grow(name: &str, from: u32, to: u32) -> CatalogCommand {
    let [expected, settings] = [from, to].map(|partitions| Settings { partitions, ..settings(2, None) });
    CatalogCommand::UpdateQueue { name: name.into(), expected, settings, shard_count: 2 }
}

#[test]
fn partitions_come_and_go_together_and_only_become_more() {
    let mut catalog = Catalog::new();
    let is_partition = || CatalogOutcome::IsPartition { of: "a".into() };
    let only_rise = |partitions| CatalogOutcome::PartitionsOnlyRise { partitions };
    let updated = |queue, shard, revision| CatalogOutcome::Updated {
        queue: QueueId::new(queue),
        shard: ShardId::new(shard),
        revision,
    };
    let steps = [
        (create("b/2", None), created(1, 1)),
        (partitioned("b", 3), CatalogOutcome::PartitionNameTaken { name: "b/2".into() }),
        (partitioned("a", 2), created(2, 2)),
        (partitioned("a", 2), CatalogOutcome::Exists { queue: QueueId::new(2), shard: ShardId::new(2) }),
        (create("a/0", None), is_partition()),
        (create("a/7", None), is_partition()),
        (delete("a/1"), is_partition()),
        (grow("a/1", 2, 3), is_partition()),
        (CatalogCommand::CreateTopic { name: "a".into(), alternate: None }, CatalogOutcome::NameTaken),
        (grow("a", 2, 1), only_rise(2)),
        (grow("a", 3, 4), CatalogOutcome::NotAsExpected),
        (grow("a", 2, 4), updated(2, 2, 3)),
        (grow("b/2", 0, 2), only_rise(0)),
        (create("c", Some("a/3")), created(6, 2)),
        (delete("a"), CatalogOutcome::InUse { by: "c".into() }),
        (delete("c"), deleted(6, 2)),
        (create("d", Some("a")), created(7, 2)),
        (delete("a"), CatalogOutcome::InUse { by: "d".into() }),
        (delete("d"), deleted(7, 2)),
    ];
    check(&mut catalog, steps);
    let names = |catalog: &Catalog| catalog.queues().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&catalog), ["a/0", "a/1", "a/2", "a/3", "b/2"]);
    assert!(catalog.queues().all(|(name, queue)| name == "b/2" || queue.settings.partitions == 4));
    assert_eq!((catalog.partitions("a"), catalog.partitions("b")), (Some(4), None));
    let restored = Catalog::restore(catalog.records().into_iter()).unwrap();
    assert_eq!(restored.partitions("a"), Some(4));
    check(&mut catalog, [(delete("a"), deleted(2, 2)), (delete("a"), CatalogOutcome::NotFound)]);
    assert_eq!(names(&catalog), ["b/2"]);
}

#[test]
fn no_partition_gives_messages_up_to_itself() {
    let mut catalog = Catalog::new();
    let creation = CatalogCommand::CreateQueue {
        name: "a".into(),
        settings: Settings { partitions: 2, ..settings(2, Some("a/1")) },
        shard_count: 2,
        colocated_with: None,
    };
    check(&mut catalog, [(creation, CatalogOutcome::DeadLetterQueueNotFound)]);

    let give_up_to = |dead_letter_queue| CatalogCommand::UpdateQueue {
        name: "a".into(),
        expected: Settings { partitions: 2, ..settings(2, None) },
        settings: Settings { partitions: 2, ..settings(2, Some(dead_letter_queue)) },
        shard_count: 2,
    };
    let steps = [
        (partitioned("a", 2), created(1, 1)),
        (create("b", Some("a")), created(3, 1)),
        (give_up_to("a"), CatalogOutcome::DeadLetterQueueCycle),
        (give_up_to("a/1"), CatalogOutcome::DeadLetterQueueCycle),
        (give_up_to("b"), CatalogOutcome::DeadLetterQueueCycle),
    ];
    check(&mut catalog, steps);
}

#[test]
fn a_topic_that_names_a_queue_is_known_by_the_name_of_all_its_partitions() {
    let mut catalog = Catalog::new();
    let bind = CatalogCommand::Bind { topic: "t".into(), queue: "a".into(), filter: Vec::new() };
    let steps = [
        (partitioned("a", 2), created(1, 1)),
        (create("b", None), created(3, 1)),
        (CatalogCommand::CreateTopic { name: "t".into(), alternate: None }, CatalogOutcome::TopicCreated),
        (bind, CatalogOutcome::TopicChanged),
    ];
    check(&mut catalog, steps);
    assert_eq!(["a", "a/1", "b", "c"].map(|name| catalog.is_bound(name)), [true, false, false, false]);
}
