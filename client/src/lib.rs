//! The client library of Skein.
