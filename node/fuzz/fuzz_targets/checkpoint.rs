//! Fuzzes the reading of checkpoints.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    skein_node::fuzz::checkpoint(bytes);
});
