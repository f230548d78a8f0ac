//! How a client reaches its cluster: addresses and timeouts.

use std::time::Duration;

use crate::{client::Client, error::ConnectError};

/// Time for one TCP connection. A node on the same continent answers in a tenth of it; a dead machine never does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for one call with its retries. Longer than the cluster needs to replace a leader by timers alone (1.5 s).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to a cluster with other timeouts than the usual ones.
///
/// ```no_run
/// # async fn run() -> Result<(), skein_client::ConnectError> {
/// # use std::time::Duration;
/// let client = skein_client::Client::builder()
///     .servers(["10.0.0.1:7101", "10.0.0.2:7101"])
///     .request_timeout(Duration::from_secs(3))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    servers: Vec<String>,
    timeouts: Timeouts,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) request: Duration,
}

impl ClientBuilder {
    pub(crate) fn new() -> Self {
        let timeouts = Timeouts { connect: CONNECT_TIMEOUT, request: REQUEST_TIMEOUT };
        Self { servers: Vec::new(), timeouts }
    }

    /// Adds nodes to ask for the topology, as `host:port`. One that answers is enough.
    #[must_use]
    pub fn servers<S: Into<String>>(mut self, servers: impl IntoIterator<Item = S>) -> Self {
        self.servers.extend(servers.into_iter().map(Into::into));
        self
    }

    /// How long one TCP connection may take. 1 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.connect = timeout;
        self
    }

    /// How long a call may take, with its retries; also bounds [`ClientBuilder::connect`]. 10 s unless set.
    /// Producers and consumers have their own limits.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeouts.request = timeout;
        self
    }

    /// Asks the servers for the topology until one answers.
    ///
    /// # Errors
    /// When an address is not one, or none of the servers answers within the request timeout.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        if self.servers.is_empty() {
            return Err(ConnectError::NoServers);
        }
        let servers = self.servers.iter().map(|server| normalized(server)).collect::<Result<_, _>>()?;
        Client::start(servers, self.timeouts).await
    }
}

/// An address as it is used for a map key and a URI: `host:port`, without a scheme.
fn normalized(server: &str) -> Result<String, ConnectError> {
    let trimmed = server.trim();
    let address = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
    let valid = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok() && !host.contains('/'));
    if valid {
        Ok(address.to_owned())
    } else {
        Err(ConnectError::InvalidAddress { address: server.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for (given, expected) in [
            ("127.0.0.1:7101", "127.0.0.1:7101"),
            (" http://node-1.local:7101/ ", "node-1.local:7101"),
            ("[::1]:7101", "[::1]:7101"),
        ] {
            assert_eq!(normalized(given).unwrap(), expected);
        }
        for given in ["", "localhost", ":7101", "localhost:port", "https://localhost:7101", "localhost:70000"]
        {
            assert!(normalized(given).is_err(), "{given}");
        }
    }

    #[tokio::test]
    async fn a_client_needs_servers() {
        let servers: [&str; 0] = [];
        let refused = ClientBuilder::new().servers(servers).connect().await;
        assert!(matches!(refused, Err(ConnectError::NoServers)));
    }
}
