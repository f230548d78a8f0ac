//! Ranges of offsets, and sets and maps made of them: what is true of a run of messages is said once.

mod range;
mod runs;
mod set;
#[cfg(test)]
mod tests;

pub use range::OffsetRange;
pub use runs::OffsetRuns;
pub use set::OffsetSet;
