//! Real Skein clusters under faults.
