//! Compares what the cluster wants with what is, and brings the one to the other.

mod leaders;
mod queues;
mod replicas;
mod roster;
mod steady;

pub use leaders::LeaderBalance;
pub use queues::reconcile_queues;
pub use replicas::{Activities, ReplicaKeeper};
pub use roster::RosterKeeper;
pub use steady::Steady;
