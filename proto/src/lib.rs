//! The vocabulary of Skein: the gRPC schema as Rust types, ids, names and limits. Depends on nothing of ours.
//!
//! [`broker`] is what clients speak. [`node`] is the same schema as a node reads it: a batch of messages is one
//! `bytes` field there, so that it travels from publisher to log to consumer without being taken apart.

pub mod dead_letter;
pub mod ids;
pub mod limits;
pub mod partitions;

/// The client API, package `skein.broker.v1`, with every message decoded.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod broker {
    include!(concat!(env!("OUT_DIR"), "/client/skein.broker.v1.rs"));
}

/// The client API as nodes see it: fields of type `Message` and `MessageBatch` are `Bytes`.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod node {
    include!(concat!(env!("OUT_DIR"), "/node/skein.broker.v1.rs"));
}

/// Node to node, package `skein.peer.v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/node/skein.peer.v1.rs"));
}

/// What is replicated and checkpointed, package `skein.storage.v1`.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod storage {
    include!(concat!(env!("OUT_DIR"), "/node/skein.storage.v1.rs"));
}

/// The compiled schema, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The trailer in which an error's machine-readable [`broker::Reason`] travels, by name.
pub const REASON_TRAILER: &str = "skein-reason";
