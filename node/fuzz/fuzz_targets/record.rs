//! Fuzzes the reading of batches of log records.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    skein_node::fuzz::record(bytes);
});
