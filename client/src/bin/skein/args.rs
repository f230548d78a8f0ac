//! Arguments that several commands share, and how they are read.

use std::{
    env,
    time::{Duration, SystemTime},
};

use clap::Args;
use prost_types::Timestamp;
use skein_client::{Client, ConnectError};

/// Where a node listens that was started by `skein-node dev`.
const SERVERS_DEFAULT: &str = "127.0.0.1:7101";

/// Shorter than the library's: somebody is looking at the screen.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach the cluster.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectArgs {
    /// Nodes of the cluster as host:port; one that answers is enough. [default: $SKEIN_SERVERS, or 127.0.0.1:7101]
    #[arg(long, global = true, value_delimiter = ',', value_name = "HOST:PORT,...")]
    servers: Vec<String>,
}

impl ConnectArgs {
    pub(crate) async fn client(&self) -> Result<Client, ConnectError> {
        let servers = match &self.servers[..] {
            [] => env::var("SKEIN_SERVERS").unwrap_or_else(|_| SERVERS_DEFAULT.to_owned()),
            servers => servers.join(","),
        };
        let servers = servers.split(',').filter(|server| !server.trim().is_empty());
        Client::builder().servers(servers).request_timeout(REQUEST_TIMEOUT).connect().await
    }
}

/// Reads `250ms`, `30s`, `5m`, `2h` or `7d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("\"{unit}\" is no unit of time; write one number with ms, s, m, h or d")),
    };
    let number: u64 =
        number.parse().map_err(|_| "write a whole number and a unit, such as 30s".to_owned())?;
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| "that is too long".to_owned())
}

/// The same for a message, which nobody could take without any.
pub(crate) fn time_to_live(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => {
            Err("it would be over before anybody takes the message; leave it out for none".to_owned())
        }
        ttl => Ok(ttl),
    }
}

/// Reads `4096`, `10MB` or `1GiB`; a bare number is bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => {
            return Err(format!(
                "\"{unit}\" is no unit of size; write a whole number with kB, MB, GB, TB, KiB, MiB, GiB or TiB"
            ));
        }
    };
    let number: u64 =
        number.parse().map_err(|_| "write a whole number and a unit, such as 10MB".to_owned())?;
    number.checked_mul(unit_bytes).ok_or_else(|| "that is too large".to_owned())
}

/// Reads a time as in RFC 3339, such as `2026-11-26T12:00:00Z`.
pub(crate) fn time(text: &str) -> Result<SystemTime, String> {
    let timestamp = text.parse::<Timestamp>().ok();
    let time = timestamp.and_then(|timestamp| SystemTime::try_from(timestamp).ok());
    time.ok_or_else(|| "write a time such as 2026-11-26T12:00:00Z".to_owned())
}

/// Reads a time, or how long ago it was, such as `10m`.
pub(crate) fn when(text: &str) -> Result<SystemTime, String> {
    let ago = duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let time = ago.map_or_else(|| time(text), Ok);
    time.map_err(|_| "write a time such as 2026-11-26T12:00:00Z, or how long ago, such as 10m".to_owned())
}

/// Reads `name=value`.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write name=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let durations = [
            ("250ms", 250),
            ("30s", 30_000),
            ("2", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ];
        for (text, ms) in durations {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert!(time_to_live("0ms").is_err() && time_to_live("1ms").is_ok());
        for text in ["", "s", "5 s", "5w", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("4096", 4_096),
            ("10MB", 10_000_000),
            ("1GiB", 1 << 30),
            ("2kb", 2_000),
            ("7b", 7),
            ("3TiB", 3 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "1 MB", "1m", "-1", "1.5GB", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_points_or_spans_ago() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_694_400);
        for text in ["2026-11-26T12:00:00Z", "2026-11-26T13:00:00+01:00", "2026-11-26 12:00:00"] {
            assert_eq!(when(text), Ok(noon), "{text}");
            assert_eq!(time(text), Ok(noon), "{text}");
        }
        let ago = when("10m").unwrap().elapsed().unwrap();
        assert!((600..660).contains(&ago.as_secs()), "{ago:?}");
        assert!(time("10m").is_err());
        for text in ["", "noon", "2026-11-26T25:00:00Z", "10w"] {
            assert!(when(text).is_err(), "{text}");
        }
    }

    #[test]
    fn headers_have_names() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("=b").is_err());
        assert!(header("a").is_err());
    }
}
