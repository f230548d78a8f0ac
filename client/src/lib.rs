//! The client library of Skein, a replicated message queue.
//!
//! A [`Client`] connects to a cluster through any of its nodes. A [`Producer`] publishes a stream of messages, a
//! [`Consumer`] takes them as a member of a consumer group. Both survive the loss of nodes by themselves: what was
//! confirmed is on disk on a majority of replicas, what was not is sent again and stored once, and what was delivered
//! and not acked is delivered again.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use skein_client::{Client, Message, QueueSettings};
//!
//! let client = Client::connect(["127.0.0.1:7101"]).await?;
//! client.create_queue("orders", QueueSettings::default()).await?;
//!
//! let producer = client.producer("orders").build().await?;
//! let confirm = producer.send(Message::new("two geese").key("customer-7")).await?;
//! println!("stored at offset {}", confirm.await?);
//!
//! let mut consumer = client.consumer("orders", "mail").build().await?;
//! while let Some(delivery) = consumer.next().await {
//!     let delivery = delivery?;
//!     println!("{:?}", delivery.message.body);
//!     delivery.ack().await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Errors tell apart what certainly did not happen (`NotAccepted`) from what may have (`OutcomeUnknown`), and carry a
//! [`Reason`] for programs beside a sentence for people.

mod browse;
mod calls;
mod client;
mod config;
mod consumer;
mod error;
mod filter;
mod message;
mod nodes;
mod outcome;
mod position;
mod producer;
mod queues;
mod redrive;
mod request;
mod retry;
mod routing;
mod serve;
mod settings;
mod topics;
mod topology;
mod wire_time;

pub use bytes::Bytes;
pub use skein_proto::{
    broker::Reason,
    ids::{NodeId, Offset, QueueId, ShardId},
    limits,
};
pub use tonic::Code;

pub use crate::{
    browse::{BrowseOptions, Browsed},
    calls::{LeaseToken, NotSettled, Received, Settlement},
    client::Client,
    config::ClientBuilder,
    consumer::{BatchMessages, Consumer, ConsumerBuilder, Delivery, DeliveryBatch, Settled},
    error::{
        Cause, ConfirmError, ConnectError, ConsumeError, Error, MalformedMessage, RedriveError, RequestError,
        SendError, ServeError, SettleError, TrySendError,
    },
    filter::{Filter, ParseFilterError},
    message::Message,
    nodes::Invitation,
    position::Position,
    producer::{Confirm, Producer, ProducerBuilder},
    queues::{Group, Queue},
    redrive::{DeadLetterReason, REDRIVE_GROUP, RedriveOptions, RedriveProgress},
    request::Requester,
    serve::{HandlerError, SERVER_GROUP},
    settings::{Overflow, QueueSettings, QueueUpdate, Retention, Setting},
    topics::{Binding, Routed, Topic},
    topology::{Node, NodeStanding, Shard, Topology},
};

/// Compiles the examples of the guide.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../docs/guide/publishing.md")]
    struct Publishing;
    #[doc = include_str!("../../docs/guide/consuming.md")]
    struct Consuming;
    #[doc = include_str!("../../docs/guide/dead-letters.md")]
    struct DeadLetters;
    #[doc = include_str!("../../docs/guide/retention.md")]
    struct Retention;
    #[doc = include_str!("../../docs/guide/length-limits.md")]
    struct LengthLimits;
    #[doc = include_str!("../../docs/guide/expiry.md")]
    struct Expiry;
    #[doc = include_str!("../../docs/guide/scheduling.md")]
    struct Scheduling;
    #[doc = include_str!("../../docs/guide/priorities.md")]
    struct Priorities;
    #[doc = include_str!("../../docs/guide/single-active-consumer.md")]
    struct SingleActiveConsumer;
    #[doc = include_str!("../../docs/guide/nodes.md")]
    struct Nodes;
    #[doc = include_str!("../../docs/guide/order-by-key.md")]
    struct OrderByKey;
    #[doc = include_str!("../../docs/guide/partitions.md")]
    struct Partitions;
    #[doc = include_str!("../../docs/guide/topics.md")]
    struct Topics;
    #[doc = include_str!("../../docs/guide/deduplication.md")]
    struct Deduplication;
    #[doc = include_str!("../../docs/guide/filters.md")]
    struct Filters;
    #[doc = include_str!("../../docs/guide/replay.md")]
    struct Replay;
    #[doc = include_str!("../../docs/guide/changing-settings.md")]
    struct ChangingSettings;
}
