//! A Skein broker node.
pub mod clock;
pub mod random;
pub mod tasks;
