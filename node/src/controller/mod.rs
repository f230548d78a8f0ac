//! Compares what the cluster wants with what is, and brings the one to the other.

mod queues;

pub use queues::reconcile_queues;
