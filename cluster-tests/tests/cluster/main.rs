//! Real clusters: what they do for clients, and what they do when nodes die.
//!
//! Every test has a cluster of its own; two run at a time. `docs/testing.md` says how to repeat one that failed.

mod bad_input;
mod catch_up;
mod chaos;
mod damage;
mod dedup;
mod delivery;
mod failover;
mod forwarding;
mod full_disk;
mod growing;
mod keys;
mod limits;
mod machines;
mod membership;
mod network;
mod partitions;
mod power_loss;
mod queue_partitions;
mod replay;
mod rules;
mod shop;
mod space;
mod spilling;
mod stalled;
mod succession;
mod together;
mod topic_partitions;
mod topics;
mod turns;
