//! Topics: creating and binding them, and what passes messages on.

mod fan_out;
mod outlet;
mod publish;
mod routing;
mod spread;
mod target;

use std::time::Duration;

use futures::future;
use skein_proto::{
    ids::{NodeId, ShardId},
    node::{
        BindRequest, BindResponse, Binding as BindingInfo, CreateTopicRequest, CreateTopicResponse,
        DeleteTopicRequest, DeleteTopicResponse, GetTopicRequest, GetTopicResponse, ListTopicsRequest,
        ListTopicsResponse, Topic as TopicInfo, UnbindRequest, UnbindResponse, UpdateTopicRequest,
        UpdateTopicResponse,
    },
};
use tonic::{Code, Status};

pub use self::routing::RoutingTables;
use super::{Api, filter, names, status};
use crate::broker::{Catalog, CatalogCommand, CatalogOutcome, Topic};

/// Topics in one page of a list.
const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1_000;

/// A page ends with the topic that brings its bindings to so many.
const PAGE_BINDINGS_MAX: usize = 1_000;

/// How long a change of a topic waits for the other nodes to hear of it.
const HEARD_WAIT_MAX: Duration = Duration::from_secs(2);

impl Api {
    /// Creates a topic. This node leads the catalog.
    pub(super) async fn create_topic(
        &self,
        request: CreateTopicRequest,
    ) -> Result<CreateTopicResponse, Status> {
        let CreateTopicRequest { name, alternate_queue } = request;
        names::check_topic_name(&name)?;
        let alternate = some(&alternate_queue);
        let command = CatalogCommand::CreateTopic { name: name.clone(), alternate: alternate.clone() };
        let created = match self.propose_to_catalog(&command).await? {
            CatalogOutcome::TopicCreated => true,
            CatalogOutcome::TopicExists { alternate: existing } if existing == alternate => false,
            CatalogOutcome::TopicExists { alternate: existing } => {
                let with = |queue: Option<String>| match queue {
                    Some(queue) => format!("with the alternate queue {queue:?}"),
                    None => "without an alternate queue".to_owned(),
                };
                let message = format!(
                    "topic {name:?} exists {}, and was to be created {}; use it as it is, or change it (skein topic \
                     update {name})",
                    with(existing),
                    with(alternate)
                );
                return Err(status::status(Code::AlreadyExists, status::Reason::TopicExists, message));
            }
            outcome => return Err(refused(&outcome, &name, &alternate_queue)),
        };
        self.tell_others().await;
        Ok(CreateTopicResponse { topic: Some(self.describe_topic(&name)?), created })
    }

    /// Lets a topic have another alternate queue. This node leads the catalog.
    pub(super) async fn update_topic(
        &self,
        request: UpdateTopicRequest,
    ) -> Result<UpdateTopicResponse, Status> {
        let UpdateTopicRequest { name, alternate_queue } = request;
        names::check_topic_name(&name)?;
        let command = CatalogCommand::UpdateTopic { name: name.clone(), alternate: some(&alternate_queue) };
        match self.propose_to_catalog(&command).await? {
            CatalogOutcome::TopicChanged => {}
            outcome => return Err(refused(&outcome, &name, &alternate_queue)),
        }
        self.tell_others().await;
        Ok(UpdateTopicResponse { topic: Some(self.describe_topic(&name)?) })
    }

    /// Deletes a topic. This node leads the catalog.
    pub(super) async fn delete_topic(
        &self,
        request: DeleteTopicRequest,
    ) -> Result<DeleteTopicResponse, Status> {
        let name = request.name;
        names::check_topic_name(&name)?;
        match self.propose_to_catalog(&CatalogCommand::DeleteTopic { name: name.clone() }).await? {
            CatalogOutcome::TopicDeleted => {
                self.tell_others().await;
                Ok(DeleteTopicResponse {})
            }
            outcome => Err(refused(&outcome, &name, "")),
        }
    }

    /// Lets a queue get messages. This node leads the catalog.
    pub(super) async fn bind(&self, request: BindRequest) -> Result<BindResponse, Status> {
        let BindRequest { topic, queue, filter } = request;
        check_names(&topic, &queue)?;
        let filter = filter::encode(filter.as_ref())?;
        let command = CatalogCommand::Bind { topic: topic.clone(), queue: queue.clone(), filter };
        Ok(BindResponse { changed: self.change_bindings(&command, &topic, &queue).await? })
    }

    /// Takes a binding away. This node leads the catalog.
    pub(super) async fn unbind(&self, request: UnbindRequest) -> Result<UnbindResponse, Status> {
        let UnbindRequest { topic, queue, filter } = request;
        check_names(&topic, &queue)?;
        let filter = filter::encode(filter.as_ref())?;
        let command = CatalogCommand::Unbind { topic: topic.clone(), queue: queue.clone(), filter };
        Ok(UnbindResponse { changed: self.change_bindings(&command, &topic, &queue).await? })
    }

    async fn change_bindings(
        &self,
        command: &CatalogCommand,
        topic: &str,
        queue: &str,
    ) -> Result<bool, Status> {
        let changed = match self.propose_to_catalog(command).await? {
            CatalogOutcome::TopicChanged => true,
            CatalogOutcome::TopicUnchanged => false,
            outcome => return Err(refused(&outcome, topic, queue)),
        };
        self.tell_others().await;
        Ok(changed)
    }

    /// Describes a topic as this node knows it.
    pub(super) async fn get_topic(&self, request: &GetTopicRequest) -> Result<GetTopicResponse, Status> {
        names::check_topic_name(&request.name)?;
        if let Ok(topic) = self.describe_topic(&request.name) {
            return Ok(GetTopicResponse { topic: Some(topic) });
        }
        let knows_all = self.catch_up_catalog().await;
        match self.describe_topic(&request.name) {
            Err(_) if !knows_all => Err(status::may_not_have_heard_of(&request.name)),
            described => Ok(GetTopicResponse { topic: Some(described?) }),
        }
    }

    /// Lists topics from what this node has seen.
    pub(super) fn list_topics(&self, request: &ListTopicsRequest) -> ListTopicsResponse {
        let asked = if request.page_size == 0 { PAGE } else { request.page_size.min(PAGE_MAX) };
        let mut page = ListTopicsResponse::default();
        let mut bindings = 0;
        self.groups.catalog().replica().with_catalog(|catalog| {
            let named = catalog.topics_after(&request.after);
            for topic in named.filter(|topic| topic.name.starts_with(&request.prefix)) {
                if page.topics.len() >= asked as usize || bindings >= PAGE_BINDINGS_MAX {
                    page.more = true;
                    return;
                }
                bindings += topic.bindings.len();
                page.topics.push(self.topic_info(catalog, topic));
            }
        });
        page
    }

    fn describe_topic(&self, name: &str) -> Result<TopicInfo, Status> {
        let catalog = self.groups.catalog().replica();
        let described = catalog.with_catalog(|catalog| Some(self.topic_info(catalog, catalog.topic(name)?)));
        described.ok_or_else(|| status::topic_not_found(name))
    }

    fn topic_info(&self, catalog: &Catalog, topic: &Topic) -> TopicInfo {
        let name = |queue| catalog.target_name(queue).unwrap_or_default().to_owned();
        let bindings = topic.bindings.iter().map(|binding| BindingInfo {
            queue: name(binding.queue),
            filter: filter::decode(&binding.filter).filter(|_| !binding.filter.is_empty()),
        });
        TopicInfo {
            name: topic.name.clone(),
            alternate_queue: topic.alternate.map(name).unwrap_or_default(),
            bindings: bindings.collect(),
            shard_id: self.entry_shard(&topic.name).get(),
        }
    }

    /// The shard whose leader takes publishes to a topic. Any node can; so they are spread over the nodes, and move
    /// when leaders do.
    fn entry_shard(&self, topic: &str) -> ShardId {
        ShardId::new(1 + crc32c::crc32c(topic.as_bytes()) % self.shard_count.max(1))
    }

    /// Waits until every node that can be reached has heard of a change that this one has applied, or for a while.
    pub(super) async fn tell_others(&self) {
        let index = *self.groups.catalog().replica().applied_index().borrow();
        let reachable: Vec<NodeId> = self.sightings.borrow().reachable.iter().copied().collect();
        let others = reachable.into_iter().filter(|node| *node != self.node);
        let heard = others.map(|node| self.transport.wait_applied(node, ShardId::CATALOG, index));
        // Whoever does not answer cannot be asked to pass messages on either, or hears of it when it can.
        let _ = tokio::time::timeout(HEARD_WAIT_MAX, future::join_all(heard)).await;
    }
}

fn check_names(topic: &str, queue: &str) -> Result<(), Status> {
    names::check_topic_name(topic)?;
    names::check_queue_name(queue)
}

fn some(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

fn refused(outcome: &CatalogOutcome, topic: &str, queue: &str) -> Status {
    match outcome {
        CatalogOutcome::TopicNotFound => status::topic_not_found(topic),
        CatalogOutcome::NotFound => status::queue_not_found(queue),
        CatalogOutcome::IsPartition { of } => status::is_a_partition(queue, of),
        CatalogOutcome::NameTaken => {
            let message = format!("{topic:?} is the name of a queue; give the topic another one");
            status::status(Code::AlreadyExists, status::Reason::TopicExists, message)
        }
        CatalogOutcome::TooManyBindings => {
            let max = skein_proto::limits::TOPIC_BINDINGS_MAX;
            let message = format!(
                "topic {topic:?} has as many bindings as it may: {max}, or 2 MiB of filters; take some away, or use \
                 another topic"
            );
            status::status(Code::ResourceExhausted, status::Reason::TooMany, message)
        }
        outcome => unreachable!("changing a topic came out as {outcome:?}"),
    }
}
