//! Which module of the node may name which, and who may name the crates that are kept behind one door.

use super::{
    Finding,
    source::{Source, word_positions},
};

/// One module directly below `node/src` and the modules it may name.
struct Layer {
    module: &'static str,
    below: &'static [&'static str],
    /// It may also name [`AMBIENT`].
    ambient: bool,
}

/// What everything but the deterministic core may use.
const AMBIENT: [&str; 5] = ["clock", "planted", "random", "tasks", "telemetry"];

/// From the top down. Dependencies point down only.
const LAYERS: [Layer; 28] = [
    layer("main", &["program"]),
    // One file for each subcommand.
    layer("program", &["node", "config", "raft", "log", "disk"]),
    layer("lib", &[]),
    // Opens the decoders to fuzz targets and to the tests with what those found.
    layer("fuzz", &["peer", "raft", "log", "batch"]),
    // The only place that wires parts.
    layer(
        "node",
        &[
            "api",
            "http",
            "controller",
            "formation",
            "joining",
            "datadir",
            "config",
            "peer",
            "shard",
            "raft",
            "log",
            "checkpoint",
            "disk",
            "free_space",
        ],
    ),
    layer("http", &["api", "shard", "raft", "log"]),
    layer("api", &["peer", "shard", "raft", "broker", "dispatch", "offsets", "batch", "free_space"]),
    layer("controller", &["shard", "peer", "raft", "broker"]),
    layer("formation", &["datadir", "config", "peer"]),
    layer("joining", &["datadir", "config"]),
    layer("datadir", &["disk"]),
    layer("config", &["peer", "raft", "broker", "disk"]),
    layer("peer", &["raft", "broker", "log", "free_space"]),
    // Joins raft groups, cores, dispatchers and log reads on one node.
    layer("shard", &["raft", "broker", "dispatch", "log", "offsets", "batch"]),
    // `disk` only to open a real log in its tests.
    layer("raft", &["broker", "log", "checkpoint", "offsets", "disk"]),
    layer("log", &["disk"]),
    layer("checkpoint", &[]),
    layer("free_space", &["disk"]),
    layer("disk", &[]),
    layer("telemetry", &[]),
    // Deterministic: no time, randomness or tasks.
    Layer { module: "batch", below: &["broker"], ambient: false },
    Layer { module: "broker", below: &["offsets", "planted"], ambient: false },
    Layer { module: "dispatch", below: &["offsets", "planted"], ambient: false },
    Layer { module: "offsets", below: &[], ambient: false },
    Layer { module: "clock", below: &[], ambient: false },
    Layer { module: "planted", below: &[], ambient: false },
    Layer { module: "random", below: &[], ambient: false },
    Layer { module: "tasks", below: &[], ambient: false },
];

/// A path that only some files of the node may name.
struct Door {
    path: &'static str,
    /// Beginnings of paths below `node/src`.
    open_to: &'static [&'static str],
}

const DOORS: [Door; 6] = [
    Door { path: "openraft", open_to: &["raft/"] },
    Door { path: "sled", open_to: &["checkpoint/", "checkpoint.rs"] },
    Door { path: "skein_proto::storage", open_to: &["raft/codec", "raft/records"] },
    Door { path: "skein_proto::peer", open_to: &["peer/", "formation.rs", "node/services.rs"] },
    Door { path: "skein_proto::node", open_to: &["api/", "joining.rs", "node/services.rs"] },
    // Nodes are driven through the client by `dev` and `demo` alone.
    Door { path: "skein_client", open_to: &["program/"] },
];

const fn layer(module: &'static str, below: &'static [&'static str]) -> Layer {
    Layer { module, below, ambient: true }
}

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let path = &source.file.path;
    let Some(inner) = path.strip_prefix("node/src/") else {
        return;
    };
    let module = inner.split('/').next().unwrap_or(inner).trim_end_matches(".rs");

    for (line, named) in named_paths(&source.code) {
        for door in &DOORS {
            let through = named == door.path || named.starts_with(&format!("{}::", door.path));
            if through && !door.open_to.iter().any(|open| inner.starts_with(open)) {
                let what = format!("only {} may name `{}`", door.open_to.join(" and "), door.path);
                findings.push(Finding::new(path, line, "layers", what));
            }
        }
        let Some(other) = named.strip_prefix("crate::").or_else(|| named.strip_prefix("skein_node::")) else {
            continue;
        };
        let other = other.split("::").next().unwrap_or(other);
        let is_module = LAYERS.iter().any(|layer| layer.module == other);
        if is_module && other != module && !may_name(module, other) {
            let what =
                format!("`{module}` may not name `{other}`: see the table in xtask/src/tidy/layers.rs");
            findings.push(Finding::new(path, line, "layers", what));
        }
    }
    if !LAYERS.iter().any(|layer| layer.module == module) {
        let what = format!("`{module}` is not in the table: give it a line in xtask/src/tidy/layers.rs");
        findings.push(Finding::new(path, 1, "layers", what));
    }
}

fn may_name(module: &str, other: &str) -> bool {
    LAYERS
        .iter()
        .find(|layer| layer.module == module)
        .is_some_and(|layer| layer.below.contains(&other) || (layer.ambient && AMBIENT.contains(&other)))
}

/// Every path in the code that begins where a door or a module may be, with its line; `a::{b, c::d}` gives `a::b`
/// and `a::c::d`.
fn named_paths(code: &str) -> Vec<(usize, String)> {
    let roots = ["crate", "skein_node", "skein_proto", "skein_client", "openraft", "sled"];
    let mut paths = Vec::new();
    for root in roots {
        for at in word_positions(code, root) {
            // The middle of another path, such as `self::sled`, or a field.
            if code[..at].ends_with("::") || code[..at].ends_with('.') || code[..at].ends_with('$') {
                continue;
            }
            let line = 1 + code[..at].matches('\n').count();
            expand(&code[at..], "", line, &mut paths);
        }
    }
    paths
}

/// Reads one path, and the paths in its braces, from the beginning of `code`. Gives back what follows it.
fn expand<'a>(code: &'a str, prefix: &str, line: usize, paths: &mut Vec<(usize, String)>) -> &'a str {
    let word_end = code.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(code.len());
    let path = format!("{prefix}{}", &code[..word_end]);
    let rest = &code[word_end..];
    let Some(inside) = rest.strip_prefix("::") else {
        paths.push((line, path));
        return rest;
    };
    let Some(mut list) = inside.strip_prefix('{') else {
        if inside.starts_with(|char: char| char.is_alphabetic() || char == '_') {
            return expand(inside, &format!("{path}::"), line, paths);
        }
        paths.push((line, path));
        return inside;
    };
    let mut line = line;
    loop {
        let item = list.trim_start_matches([',', ' ', '\n', '\r', '\t', '*']);
        line += list[..list.len() - item.len()].matches('\n').count();
        if item.is_empty() || item.starts_with('}') {
            return item.strip_prefix('}').unwrap_or(item);
        }
        let after = expand(item, &format!("{path}::"), line, paths);
        line += item[..item.len() - after.len()].matches('\n').count();
        // Over `as other_name`, to the end of the item.
        let skipped = after.find([',', '}']).unwrap_or(after.len());
        line += after[..skipped].matches('\n').count();
        list = &after[skipped..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::check_one;

    #[test]
    fn finds_a_path_that_points_up() {
        let cases = [
            ("node/src/api/publish.rs", "use crate::shard::Shards;", vec![]),
            ("node/src/api/publish.rs", "use crate::log::Log;", vec!["2:layers"]),
            ("node/src/log/writer.rs", "use crate::{clock::Clock, disk::Disk};", vec![]),
            (
                "node/src/log/writer.rs",
                "use crate::{\n    disk::Disk,\n    raft::{Group, Vote as V},\n};",
                vec!["4:layers"],
            ),
            ("node/src/broker/shard.rs", "fn a(clock: crate::clock::Clock) {}", vec!["2:layers"]),
            ("node/src/broker/shard.rs", "use crate::{broker::queue::Queue, offsets::OffsetSet};", vec![]),
            ("node/src/dispatch/mod.rs", "use crate::broker::Event;", vec!["2:layers"]),
            ("node/src/main.rs", "use skein_node::{program, raft};", vec!["2:layers"]),
            ("node/src/http/mod.rs", "// crate::raft in prose", vec![]),
            ("node/src/surprise.rs", "", vec!["1:layers"]),
            ("client/src/api.rs", "use crate::raft::Groups;", vec![]),
        ];
        for (path, line, findings) in cases {
            assert_eq!(check_one(path, &format!("//! A.\n{line}\n")), findings, "{path}: {line}");
        }
    }

    #[test]
    fn finds_a_path_past_a_closed_door() {
        let cases = [
            ("node/src/raft/network.rs", "use openraft::Raft;", vec![]),
            ("node/src/shard.rs", "use openraft::Raft;", vec!["2:layers"]),
            ("node/src/checkpoint/mod.rs", "use sled::Db;", vec![]),
            ("node/src/log/mod.rs", "fn a(db: &sled::Db) {}", vec!["2:layers"]),
            ("node/src/raft/codec.rs", "use skein_proto::{ids::NodeId, storage::EntryBody};", vec![]),
            (
                "node/src/raft/types.rs",
                "use skein_proto::{ids::NodeId, storage::EntryBody};",
                vec!["2:layers"],
            ),
            ("node/src/api/mod.rs", "use skein_proto::{node as wire, peer};", vec!["2:layers"]),
            ("node/src/http/mod.rs", "use skein_proto::node::Topology;", vec!["2:layers"]),
            ("node/src/shard.rs", "use skein_proto::ids::NodeId;", vec![]),
        ];
        for (path, line, findings) in cases {
            assert_eq!(check_one(path, &format!("//! A.\n{line}\n")), findings, "{path}: {line}");
        }
    }

    #[test]
    fn every_layer_names_only_layers_and_none_twice() {
        for (number, layer) in LAYERS.iter().enumerate() {
            assert!(
                LAYERS[..number].iter().all(|other| other.module != layer.module),
                "{} twice",
                layer.module
            );
            for below in layer.below {
                let position = LAYERS.iter().position(|other| other.module == *below);
                assert!(position.is_some_and(|position| position > number), "{} -> {below}", layer.module);
            }
        }
    }
}
