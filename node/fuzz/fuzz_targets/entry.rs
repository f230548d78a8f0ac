//! Fuzzes the reading of raft entries and batches of messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    skein_node::fuzz::entry(bytes);
});
