//! What is done to a cluster while it works. Every fault is recorded when it happens.

pub mod damage;
pub mod disk;
pub mod kill;
pub mod links;
pub mod machine;
pub mod packets;
pub mod power;
pub mod schedule;
