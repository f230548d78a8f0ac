//! Commands and records of the catalog, of every kind.

use proptest::{collection::vec, option, prelude::*};
use skein_proto::ids::{NodeId, QueueId, ShardId, TopicId};

use super::settings;
use crate::broker::{
    Binding, CatalogCommand, CatalogQueueRecord, CatalogRecord, CatalogTopicRecord, ClusterNode,
    NodeAddresses, NodeCommand, Record, RecordKey, Standing,
};

pub(super) fn catalog_command() -> impl Strategy<Value = CatalogCommand> {
    prop_oneof![
        (".{0,9}", settings(), any::<u32>(), option::of("[a-z]{1,8}")).prop_map(
            |(name, settings, shard_count, colocated_with)| CatalogCommand::CreateQueue {
                name,
                settings,
                shard_count,
                colocated_with,
            }
        ),
        (".{0,9}", settings(), settings(), any::<u32>()).prop_map(
            |(name, expected, settings, shard_count)| CatalogCommand::UpdateQueue {
                name,
                expected,
                settings,
                shard_count,
            }
        ),
        (".{0,9}", option::of(1..9_u64)).prop_map(|(name, queue)| {
            CatalogCommand::DeleteQueue { name, queue: queue.map(QueueId::new) }
        }),
        (".{0,9}", option::of("[a-z]{1,8}"), any::<bool>()).prop_map(|(name, alternate, is_new)| {
            if is_new {
                CatalogCommand::CreateTopic { name, alternate }
            } else {
                CatalogCommand::UpdateTopic { name, alternate }
            }
        }),
        ".{0,9}".prop_map(|name| CatalogCommand::DeleteTopic { name }),
        (".{0,9}", ".{0,9}", vec(any::<u8>(), 0..5), any::<bool>()).prop_map(
            |(topic, queue, filter, binds)| {
                if binds {
                    CatalogCommand::Bind { topic, queue, filter }
                } else {
                    CatalogCommand::Unbind { topic, queue, filter }
                }
            }
        ),
        node_command().prop_map(CatalogCommand::Node),
    ]
}

fn node_command() -> impl Strategy<Value = NodeCommand> {
    prop_oneof![
        vec((node(), addresses()), 0..4).prop_map(|nodes| NodeCommand::Found { nodes }),
        (".{0,9}", option::of(node())).prop_map(|(token, replaces)| NodeCommand::Invite { token, replaces }),
        (".{0,9}", ".{0,9}", addresses())
            .prop_map(|(token, directory, addresses)| { NodeCommand::Join { token, directory, addresses } }),
        node().prop_map(|node| NodeCommand::Remove { node }),
        node().prop_map(|node| NodeCommand::Forget { node }),
        (node(), any::<bool>()).prop_map(|(node, is_drained)| NodeCommand::Drain { node, is_drained }),
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    (1..u64::MAX).prop_map(NodeId::new)
}

fn addresses() -> impl Strategy<Value = NodeAddresses> {
    (".{0,9}", ".{0,9}", ".{0,9}").prop_map(|(grpc, http, clients)| NodeAddresses { grpc, http, clients })
}

pub(super) fn keyed_catalog_record() -> impl Strategy<Value = (RecordKey, Record)> {
    let next = 1..u64::MAX;
    let head = (any::<[u64; 3]>(), next.clone(), next).prop_map(|(numbers, next_topic, next_node)| {
        Record::Catalog(CatalogRecord {
            next_queue: QueueId::new(numbers[0]),
            revision: numbers[1],
            replicated_index: numbers[2],
            next_topic: TopicId::new(next_topic),
            next_node: NodeId::new(next_node),
        })
    });
    let queue = (".{0,9}", any::<(u32, u64)>(), settings()).prop_map(|(name, numbers, settings)| {
        let (shard, settings_revision) = (ShardId::new(numbers.0), numbers.1);
        Record::CatalogQueue(CatalogQueueRecord { name, shard, settings, settings_revision })
    });
    let binding = ((1..9_u64).prop_map(QueueId::new), vec(any::<u8>(), 0..5))
        .prop_map(|(queue, filter)| Binding { queue, filter });
    let alternate = option::of((1..9_u64).prop_map(QueueId::new));
    let topic = (".{0,9}", vec(binding, 0..4), alternate, any::<u64>()).prop_map(
        |(name, bindings, alternate, revision)| {
            Record::CatalogTopic(CatalogTopicRecord { name, bindings, alternate, revision })
        },
    );
    let standing = prop_oneof![Just(Standing::Invited), Just(Standing::Member), Just(Standing::Leaving)];
    let cluster_node = (standing, addresses(), ".{0,9}", ".{0,9}", option::of(node()), any::<bool>())
        .prop_map(|(standing, addresses, token, directory, replaces, is_drained)| {
            Record::CatalogNode(ClusterNode { standing, addresses, token, directory, replaces, is_drained })
        });
    prop_oneof![
        (Just(RecordKey::Catalog), head),
        (any::<u64>().prop_map(|id| RecordKey::CatalogQueue { queue: QueueId::new(id) }), queue),
        (any::<u64>().prop_map(|id| RecordKey::CatalogTopic { topic: TopicId::new(id) }), topic),
        (any::<u64>().prop_map(|id| RecordKey::CatalogNode { node: NodeId::new(id) }), cluster_node),
    ]
}
