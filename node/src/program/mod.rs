//! What `skein-node` can be told to do: run a node, ask one how it is, run a cluster of them for trying things out,
//! demonstrate one, or show what one left on disk.

mod cluster;
mod demo;
mod dev;
mod dump;
mod health;
mod run;

pub use demo::{DemoOptions, demo};
pub use dev::{DevOptions, dev};
pub use dump::{DumpOptions, dump};
pub use health::{HealthOptions, health};
pub use run::{RunOptions, run};
