//! A node's configuration: one TOML file, read once, checked once.

mod file;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use skein_proto::ids::NodeId;

use self::file::{Contradiction, File};
use crate::{
    broker::NodeAddresses,
    disk,
    peer::Members,
    raft::{Scrubbing, Timers},
};

/// Why a configuration is refused. The message names the file and line and says what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Not TOML, or a field that does not exist or has the wrong type.
    #[error("the configuration {path} is refused")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value that is out of range or contradicts another one.
    #[error("{path}:{line}: {message}")]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what to write instead.
        message: String,
    },
}

/// A checked configuration. See `deploy/node.example.toml` for what each field means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which of `members` this node is, unless it joins a cluster that exists.
    pub node: Option<NodeId>,
    /// Where other nodes and clients reach it.
    pub advertised: NodeAddresses,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Where gRPC listens.
    pub listen_grpc: SocketAddr,
    /// Where HTTP listens.
    pub listen_http: SocketAddr,
    /// Message shards of the cluster.
    pub shard_count: u32,
    /// The nodes that form the cluster; for a node that joins, those that it asks first.
    pub members: Members,
    /// Limits on what clients may do.
    pub limits: Limits,
    /// The log.
    pub log: LogConfig,
    /// Timers of raft.
    pub timers: Timers,
    /// How long a stopping node waits for its leaders to be taken over.
    pub drain: Duration,
    /// Threads of the async runtime.
    pub threads: usize,
    /// Bytes of memory for where messages lie that wait in queues.
    pub page_memory_bytes: u64,
}

/// Limits on what clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of batches in flight.
    pub in_flight_bytes_max: u32,
    /// Bytes of one message, encoded.
    pub message_bytes_max: usize,
    /// Publishes are refused while the disk has less room than this; 0 stands for what suits the disk.
    pub disk_low_bytes: u64,
}

/// The log's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Bytes of the newest entries kept in memory.
    pub cache_bytes: usize,
    /// Write past the page cache where the file system can.
    pub direct_io: bool,
    /// Bytes of the log that are kept for replicas that lag.
    pub lag_bytes_max: u64,
    /// How cold segments are read through for damage.
    pub scrubbing: Scrubbing,
}

impl Config {
    /// Reads and checks a file. `given` is the node's id where the file leaves it to whoever starts the node.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path, given: Option<NodeId>) -> Result<Self, ConfigError> {
        let text = disk::read_text(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text, given)
    }

    /// Checks a configuration's text; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str, given: Option<NodeId>) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        file.check(given).map_err(|Contradiction { at, message }| ConfigError::Contradiction {
            path: path.to_owned(),
            line: 1 + text[..at.start].matches('\n').count(),
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
node_id = 1
data_dir = "/var/lib/skein"
[listen]
grpc = "127.0.0.1:7101"
http = "127.0.0.1:7201"
[cluster]
members = [
  { node_id = 1, grpc = "127.0.0.1:7101", http = "127.0.0.1:7201" },
  { node_id = 2, grpc = "127.0.0.1:7102", http = "127.0.0.1:7202" },
  { node_id = 3, grpc = "127.0.0.1:7103", http = "127.0.0.1:7203" },
]
"#;

    fn parse(text: &str) -> Result<Config, String> {
        parse_as(None, text)
    }

    fn parse_as(given: Option<u64>, text: &str) -> Result<Config, String> {
        Config::parse(Path::new("node.toml"), text, given.map(NodeId::new))
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[test]
    fn the_example_is_accepted_and_says_what_the_defaults_are() {
        let example = include_str!("../../deploy/node.example.toml");
        let with_defaults = parse(GOOD).unwrap();
        assert_eq!(parse(example).unwrap(), with_defaults);
        assert_eq!(with_defaults.shard_count, 8);
    }

    #[test]
    fn the_files_that_nodes_share_leave_the_id_to_whoever_starts_them() {
        for shared in
            [include_str!("../../deploy/compose.toml"), include_str!("../../deploy/kubernetes/node.toml")]
        {
            for node_id in 1..=3 {
                assert_eq!(parse_as(Some(node_id), shared).unwrap().node, Some(NodeId::new(node_id)));
            }
        }
    }

    #[test]
    fn the_id_comes_from_the_file_or_from_whoever_starts_the_node() {
        let shared = GOOD.replace("node_id = 1\ndata", "data");
        assert_eq!(parse_as(Some(2), &shared).unwrap().node, Some(NodeId::new(2)));
        assert_eq!(parse_as(Some(1), GOOD).unwrap(), parse(GOOD).unwrap());
        let refusals = [
            (
                parse(&shared),
                "node.toml:1: node_id is missing; write it here, or start the node with --node-id",
            ),
            (parse_as(Some(2), GOOD), "node.toml:2: node_id is 1 here, and 2 by --node-id or SKEIN_NODE_ID"),
            (
                parse_as(Some(4), &shared),
                "node.toml:1: node_id is 4 by --node-id or SKEIN_NODE_ID, which cluster.members does not list",
            ),
        ];
        for (refused, expected) in refusals {
            let refused = refused.unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn members_have_names_and_tell_clients_another_one_if_need_be() {
        let named = GOOD.replace("grpc = \"127.0.0.1:7102\"", "grpc = \"skein-2.nodes:7102\"");
        let member = |text: &str| parse(text).unwrap().members[&NodeId::new(2)].clone();
        assert_eq!(member(&named).clients, "skein-2.nodes:7102");
        let outside = named.replace(":7202\"", ":7202\", clients = \"queue.example.org:7102\"");
        assert_eq!(member(&outside).grpc, "skein-2.nodes:7102");
        assert_eq!(member(&outside).clients, "queue.example.org:7102");
        let nowhere = outside.replace("queue.example.org:7102", "queue.example.org");
        assert!(parse(&nowhere).unwrap_err().contains("\"queue.example.org\" is not an address"));
        let taken = outside.replace("queue.example.org:7102", "127.0.0.1:7101");
        assert!(parse(&taken).unwrap_err().contains("127.0.0.1:7101 is listed for node 1 and for node 2"));
    }

    #[test]
    fn a_node_that_joins_says_where_it_is_reached_and_gets_its_id_from_the_cluster() {
        let advertise = "[advertise]\ngrpc = \"new:7101\"\nhttp = \"new:7201\"\n[cluster]";
        let joins = GOOD.replace("node_id = 1\ndata", "data").replace("[cluster]", advertise);
        let two =
            joins.replace("  { node_id = 3, grpc = \"127.0.0.1:7103\", http = \"127.0.0.1:7203\" },\n", "");
        for joins in [&joins, &two] {
            let config = parse(joins).unwrap();
            assert_eq!(config.node, None);
            assert_eq!((&*config.advertised.grpc, &*config.advertised.clients), ("new:7101", "new:7101"));
        }
        let both = GOOD.replace("[cluster]", advertise);
        assert!(parse(&both).unwrap_err().contains("node.toml:2: advertise is for a node that joins"));
        assert!(parse_as(Some(2), &joins).unwrap_err().contains("leave node_id out"));
        let nowhere = joins.replace("new:7201", "new");
        assert!(parse(&nowhere).unwrap_err().contains("\"new\" is not an address"));
        assert_eq!(parse(GOOD).unwrap().advertised.grpc, "127.0.0.1:7101");
    }

    #[test]
    fn each_mistake_is_refused_with_its_line_and_what_to_write() {
        let cases = [
            (
                "node_id = 1",
                "node_id = 4",
                "node.toml:2: node_id is 4, which cluster.members does not list (it lists 1, 2, 3)",
            ),
            ("{ node_id = 2,", "{ node_id = 1,", "node.toml:10: node 1 is listed twice"),
            (
                "127.0.0.1:7102",
                "127.0.0.1:7101",
                "node.toml:10: 127.0.0.1:7101 is listed for node 1 and for node 2",
            ),
            ("127.0.0.1:7102", "127.0.0.1", "node.toml:10: \"127.0.0.1\" is not an address; write host:port"),
            ("[cluster]", "[runtime]\nthreads = 0\n[cluster]", "node.toml:8: runtime.threads is 0"),
            ("[cluster]", "[cluster]\nshards = 0", "node.toml:8: cluster.shards is 0; write 1 to 256"),
            (
                "[cluster]",
                "[raft]\nelection_min_ms = 200\n[cluster]",
                "node.toml:8: raft.election_min_ms is 200",
            ),
            (
                "[cluster]",
                "[raft]\nelection_max_ms = 1100\n[cluster]",
                "node.toml:8: raft.election_max_ms is 1100",
            ),
            (
                "[cluster]",
                "[limits]\nmessage_bytes_max = 9999999\n[cluster]",
                "node.toml:8: limits.message_bytes_max is 9999999",
            ),
            (
                "[cluster]",
                "[limits]\ndisk_low_bytes = 1000\n[cluster]",
                "node.toml:8: limits.disk_low_bytes is 1000, less than one segment; write at least 67108864",
            ),
            ("[cluster]", "[log]\nsegment_bytes = 1000\n[cluster]", "node.toml:8: log.segment_bytes is 1000"),
            (
                "http = \"127.0.0.1:7201\"\n[",
                "http = \"127.0.0.1:7101\"\n[",
                "node.toml:6: listen.http is the same address",
            ),
            ("[cluster]", "[cluster]\nshard = 3", "unknown field `shard`, expected `shards` or `members`"),
        ];
        for (good, bad, expected) in cases {
            assert!(GOOD.contains(good), "{good}");
            let refused = parse(&GOOD.replacen(good, bad, 1)).unwrap_err();
            assert!(refused.contains(expected), "for {bad:?}: {refused}");
        }
    }
}
