//! A Skein broker node.

pub mod api;
pub mod batch;
pub mod broker;
pub mod checkpoint;
pub mod clock;
pub mod controller;
pub mod disk;
pub mod dispatch;
pub mod log;
pub mod offsets;
pub mod peer;
pub mod raft;
pub mod random;
pub mod shard;
pub mod tasks;
