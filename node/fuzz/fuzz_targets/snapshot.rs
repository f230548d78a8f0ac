//! Fuzzes the reading of what a peer sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    skein_node::fuzz::snapshot(bytes);
});
