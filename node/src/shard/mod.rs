//! Joins the parts that serve a shard on its leader: the raft group, the dispatcher, and the log that holds bodies.
//!
//! Every node has a [`ShardServer`] for each message shard. While its node leads, the server runs one delivery task
//! ([`delivery`]) that owns the [`Dispatcher`](crate::dispatch::Dispatcher) and one that moves dead letters
//! ([`dead_letters`]); both end with the leadership, and a new leader starts from the replicated state alone.

mod bodies;
mod company;
pub mod dead_letters;
mod delivery;
mod ended;
mod handle;
mod idle;
mod leases;
mod outbox;
mod server;
mod stored;

pub use bodies::{Bodies, BodyError, BodyReader};
pub use company::Company;
pub use handle::{
    Coming, DeliveryHandle, GroupCounts, Resumed, SettleError, SettleItem, SettleKind, SubscribeError,
    Subscription, Unsettled,
};
pub use leases::{LeaseToken, MalformedToken};
pub use outbox::{Outbox, OutboxItem};
pub use server::{ShardServer, ShardServers};
