//! Topics: creating and binding them, looking at and deleting them, and publishing to them with a single call.

use skein_proto::{
    broker::{self, Reason, topics_client::TopicsClient},
    ids::ShardId,
    limits,
};
use tonic::transport::Channel;

use crate::{
    calls::Sending,
    client::{Client, Repeat},
    error::Error,
    filter::Filter,
    message::Message,
};

/// A name that messages are published to, and that passes each on to the queues that are bound to it and want it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topic {
    /// Unique among topics and queues.
    pub name: String,
    /// The queue that gets messages that no binding wants.
    pub alternate_queue: Option<String>,
    /// Which queues get which messages. A queue may have several; it gets each message once.
    pub bindings: Vec<Binding>,
}

/// Says that a queue gets some messages of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// Which messages; none for all.
    pub filter: Option<Filter>,
}

/// What became of messages that were published to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// How many messages its queues have got, all taken together.
    pub copies: u32,
    /// How many messages no queue has got.
    pub unrouted: u32,
}

impl Client {
    /// Creates a topic, and says whether it did: one that exists with the same alternate queue is left as it is. When
    /// an answer got lost and the call was repeated, this is false even though this call created the topic.
    ///
    /// # Errors
    /// When a topic of that name exists with another alternate queue, or a queue of that name; when the name is not
    /// allowed, the alternate queue does not exist, or the cluster does not answer.
    pub async fn create_topic(&self, name: &str, alternate_queue: Option<&str>) -> Result<bool, Error> {
        let request = broker::CreateTopicRequest {
            name: name.to_owned(),
            alternate_queue: alternate_queue.unwrap_or_default().to_owned(),
        };
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { service(channel).create_topic(request).await }
            })
            .await?;
        Ok(answer.created)
    }

    /// Lets a topic have another alternate queue, or none, and gives it as it is then.
    ///
    /// # Errors
    /// When the topic or the queue does not exist, or the cluster does not answer.
    pub async fn update_topic(&self, name: &str, alternate_queue: Option<&str>) -> Result<Topic, Error> {
        let request = broker::UpdateTopicRequest {
            name: name.to_owned(),
            alternate_queue: alternate_queue.unwrap_or_default().to_owned(),
        };
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { service(channel).update_topic(request).await }
            })
            .await?;
        Ok(answer.topic.unwrap_or_default().into())
    }

    /// Deletes a topic. Its queues stay.
    ///
    /// # Errors
    /// When the topic does not exist, or the cluster does not answer.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        self.router().forget_shard(name);
        let deleted = self
            .call(Repeat::Always, None, |channel| {
                let request = broker::DeleteTopicRequest { name: name.to_owned() };
                async move { service(channel).delete_topic(request).await }
            })
            .await;
        match deleted {
            // It happened the first time.
            Err(Error::OutcomeUnknown(cause)) if cause.reason == Reason::TopicNotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Looks at a topic.
    ///
    /// # Errors
    /// When the topic does not exist, or the cluster does not answer.
    pub async fn get_topic(&self, name: &str) -> Result<Topic, Error> {
        Ok(self.look_up_topic(name).await?.into())
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list_topics(&self) -> Result<Vec<Topic>, Error> {
        let mut topics: Vec<Topic> = Vec::new();
        loop {
            let after = topics.last().map(|topic| topic.name.clone()).unwrap_or_default();
            let answer = self
                .call(Repeat::Always, None, |channel| {
                    let request = broker::ListTopicsRequest { after: after.clone(), ..Default::default() };
                    async move { service(channel).list_topics(request).await }
                })
                .await?;
            topics.extend(answer.topics.into_iter().map(Topic::from));
            if !answer.more {
                return Ok(topics);
            }
        }
    }

    /// Lets a queue get messages of a topic: those that the filter wants, or all. Says whether that is new. What is
    /// published from then on, to any node, goes to the queue as well.
    ///
    /// # Errors
    /// When the topic or the queue does not exist, the filter is not allowed, the topic has as many bindings as it may
    /// (10,000), or the cluster does not answer.
    pub async fn bind(&self, topic: &str, queue: &str, filter: Option<Filter>) -> Result<bool, Error> {
        let request = broker::BindRequest {
            topic: topic.to_owned(),
            queue: queue.to_owned(),
            filter: filter.map(Filter::into_wire),
        };
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { service(channel).bind(request).await }
            })
            .await?;
        Ok(answer.changed)
    }

    /// Takes a binding away, named by its queue and filter. Says whether there was one.
    ///
    /// # Errors
    /// When the topic or the queue does not exist, or the cluster does not answer.
    pub async fn unbind(&self, topic: &str, queue: &str, filter: Option<Filter>) -> Result<bool, Error> {
        let request = broker::UnbindRequest {
            topic: topic.to_owned(),
            queue: queue.to_owned(),
            filter: filter.map(Filter::into_wire),
        };
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = request.clone();
                async move { service(channel).unbind(request).await }
            })
            .await?;
        Ok(answer.changed)
    }

    /// Publishes messages to a topic as one batch, and says what became of them. A retry inside does not store them
    /// twice. For more than a few messages a second use a [`Producer`](crate::Producer), which takes the name of a
    /// topic as well.
    ///
    /// `mandatory` refuses the batch, with [`Reason::NotRouted`], when there is a message in it that no queue gets.
    ///
    /// # Errors
    /// When the topic does not exist, the batch is empty or too large (4 MiB, 16,384 messages), one of the queues is
    /// full, or the cluster does not answer. In the latter two cases some of the queues may have got it.
    pub async fn publish_to_topic(
        &self,
        topic: &str,
        messages: Vec<Message>,
        mandatory: bool,
    ) -> Result<Routed, Error> {
        let sending = Sending { mandatory, ..Sending::default() };
        let confirm = match self.send_batch(topic, messages, sending).await {
            // One queue is; others may have got them.
            Err(Error::NotAccepted(cause)) if cause.reason == Reason::QueueFull => {
                return Err(Error::OutcomeUnknown(cause));
            }
            sent => sent?,
        };
        Ok(Routed { copies: confirm.routed_copies, unrouted: confirm.unrouted_messages })
    }

    /// The shard whose leader best takes publishes to a topic.
    pub(crate) async fn shard_of_topic(&self, name: &str) -> Result<ShardId, Error> {
        Ok(ShardId::new(self.look_up_topic(name).await?.shard_id))
    }

    async fn look_up_topic(&self, name: &str) -> Result<broker::Topic, Error> {
        let answer = self
            .call(Repeat::Always, None, |channel| {
                let request = broker::GetTopicRequest { name: name.to_owned() };
                async move { service(channel).get_topic(request).await }
            })
            .await?;
        Ok(answer.topic.unwrap_or_default())
    }
}

fn service(channel: Channel) -> TopicsClient<Channel> {
    TopicsClient::new(channel).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
}

impl From<broker::Topic> for Topic {
    fn from(wire: broker::Topic) -> Self {
        let binding = |binding: broker::Binding| Binding {
            queue: binding.queue,
            filter: binding.filter.and_then(Filter::from_wire),
        };
        Self {
            name: wire.name,
            alternate_queue: (!wire.alternate_queue.is_empty()).then_some(wire.alternate_queue),
            bindings: wire.bindings.into_iter().map(binding).collect(),
        }
    }
}
