//! What the node tells of itself: on stderr, and what it counts for its metrics.

mod histogram;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

pub use histogram::{Counted, Histogram};

/// What is told when `SKEIN_LOG` does not say: our own words, and of libraries only what is wrong. openraft warns of
/// every vote it refuses and every peer it cannot reach, which an election is full of.
const DEFAULT_FILTER: &str = "warn,skein_node=info,openraft=error";

/// Starts telling. `SKEIN_LOG` filters as `RUST_LOG` does elsewhere; `SKEIN_LOG_FORMAT=json` makes each line JSON.
pub fn start() {
    let filter = EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // Colours are for people; a file or a collector gets plain text.
    let colours = std::io::stderr().is_terminal();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    if std::env::var("SKEIN_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
}
