//! What `skein-node` can be told to do: run a node, run a cluster of them for trying things out, or demonstrate one.

mod cluster;
mod demo;
mod dev;
mod run;

pub use demo::{DemoOptions, demo};
pub use dev::{DevOptions, dev};
pub use run::run;
