//! Node to node over gRPC: the service that answers peers, and the connections that call them.
//!
//! One connection a peer carries all of raft but snapshots, another those, a third the client calls that are passed on,
//! so that a flood of the one does not delay the other.

mod connections;
mod convert;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod heartbeats;
mod presence;
mod service;
mod snapshots;
mod transport;

pub use connections::{Connections, Members, Peer, is_host_and_port};
pub use credentials::{Incoming, says_removed};
pub use presence::{Presence, Sightings};
pub use service::{Identity, PeerService, Roster};
pub use transport::PeerTransport;
