//! The command line of Skein.
fn main() {}
