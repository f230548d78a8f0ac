//! Fuzzes the reading of log directories.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    skein_node::fuzz::segment(bytes);
});
