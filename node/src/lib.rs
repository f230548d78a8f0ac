//! A Skein broker node, in the order in which a published batch meets its parts.
//!
//! [`api`] takes it, checks it ([`batch`]) and finds the leader of its queue's shard. There the shard's [`raft`] group
//! gathers it with others into one entry, which goes to the [`log`] and through [`peer`] to the other nodes' logs.
//! Once a majority has it on disk, every node applies it to the [`broker`] core, and the leader confirms. On the
//! leader the [`shard`]'s delivery task hears of it, the [`dispatch`]er picks a consumer, and the consumer's stream
//! reads the body from the log. [`node`] wires the parts; [`controller`] brings what is to what should be.

pub mod api;
pub mod batch;
pub mod broker;
pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod controller;
pub mod datadir;
pub mod disk;
pub mod dispatch;
pub mod formation;
pub mod free_space;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod joining;
pub mod log;
pub mod node;
pub mod offsets;
pub mod peer;
#[doc(hidden)]
pub mod planted;
pub mod program;
pub mod raft;
pub mod random;
pub mod shard;
pub mod tasks;
pub mod telemetry;
