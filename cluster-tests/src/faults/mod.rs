//! What is done to a cluster while it works. Every fault is recorded when it happens.

pub mod kill;
pub mod schedule;
