//! A Skein broker node.

pub mod broker;
pub mod clock;
pub mod dispatch;
pub mod offsets;
pub mod random;
pub mod tasks;
