//! Real Skein clusters under faults, and the checks on what they did.
//!
//! A run is a [`history::History`]; [`checks::judge`] says whether the broker kept its promises in it. How the
//! pieces fit, and how to repeat a run that failed, is in `docs/testing.md`.

pub mod by_hand;
pub mod chaos;
pub mod checks;
pub mod cluster;
pub mod containers;
pub mod disk_use;
pub mod faults;
pub mod history;
pub mod http;
pub mod key_order;
pub mod links;
pub mod machine;
pub mod mount;
pub mod network;
pub mod observer;
pub mod process;
pub mod recorder;
pub mod replicas;
pub mod rules;
pub mod scenario;
pub mod stamp;
pub mod wait;
pub mod workload;
