//! Compiles the schema twice: as clients see it, and for nodes with message batches left as bytes.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

const SCHEMA: &str = "schema";
const FILES: [&str; 8] = [
    "skein/broker/v1/message.proto",
    "skein/broker/v1/broker.proto",
    "skein/broker/v1/queues.proto",
    "skein/broker/v1/topics.proto",
    "skein/broker/v1/cluster.proto",
    "skein/peer/v1/peer.proto",
    "skein/storage/v1/consensus.proto",
    "skein/storage/v1/storage.proto",
];

/// Message types that a node carries without looking inside. An embedded message and a `bytes` field are the same
/// on the wire, so the server's types may read the one as the other and keep a slice of what arrived.
const OPAQUE_TO_NODES: [&str; 2] = [".skein.broker.v1.Message", ".skein.broker.v1.MessageBatch"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SCHEMA}");
    let descriptors = protox::compile(FILES, [SCHEMA])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    for (folder, descriptors) in [("client", descriptors.clone()), ("node", with_opaque_batches(descriptors))]
    {
        let out = out.join(folder);
        fs::create_dir_all(&out)?;
        tonic_prost_build::configure().bytes(".").btree_map(".").out_dir(&out).compile_fds(descriptors)?;
    }
    Ok(())
}

fn with_opaque_batches(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    let fields = descriptors
        .file
        .iter_mut()
        .flat_map(|file| &mut file.message_type)
        .filter(|message| message.name() != "MessageBatch")
        .flat_map(|message| &mut message.field);
    for field in fields {
        if OPAQUE_TO_NODES.contains(&field.type_name()) {
            field.type_name = None;
            field.set_type(Type::Bytes);
            debug_assert_ne!(field.label(), Label::Required);
        }
    }
    descriptors
}
