//! What the node tells of itself: on stderr, and what it counts for its metrics.

mod histogram;
mod traces;

use std::{env, io::IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

pub use histogram::{Counted, Histogram};
pub use traces::{TraceId, Traces};

/// The batches that are followed. One for the process, as what listens to spans is.
pub static TRACES: Traces = Traces::new();

/// What is told when `SKEIN_LOG` does not say: our own words, and of libraries only what is wrong. openraft warns of
/// every vote it refuses and every peer it cannot reach, which an election is full of.
const DEFAULT_FILTER: &str = "warn,skein_node=info,openraft=error";

/// Starts telling. `SKEIN_LOG` filters as `RUST_LOG` does elsewhere; `SKEIN_LOG_FORMAT=json` makes each line JSON;
/// `SKEIN_TRACE_ONE_IN` follows one published batch in so many.
pub fn start() {
    let filter = EnvFilter::try_from_env("SKEIN_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // Colours are for people; a file or a collector gets plain text.
    let colours = std::io::stderr().is_terminal();
    let one_in = env::var("SKEIN_TRACE_ONE_IN").ok();
    let followed = one_in.as_deref().map(str::parse);
    if let Some(Ok(one_in)) = &followed {
        TRACES.set_one_in(*one_in);
    }
    // Nobody else's spans are let through by the filter.
    let spans = if followed.is_some() { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_span_events(spans);
    if env::var("SKEIN_LOG_FORMAT").is_ok_and(|format| format == "json") {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    if let Some(Err(_)) = followed {
        tracing::warn!(given = one_in, "SKEIN_TRACE_ONE_IN is no whole number; no batch is followed");
    }
}
