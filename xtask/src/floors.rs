//! Dependencies older than the version that fixed a vulnerability. `deny.toml` says the same to cargo-deny; this
//! stands in where cargo-deny is not installed, and needs nothing but `Cargo.lock`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::tidy::Finding;

/// The oldest version of a crate that may be used, where it is used at all.
struct Floor {
    name: &'static str,
    version: [u64; 3],
    why: &'static str,
}

const FLOORS: [Floor; 3] = [
    Floor { name: "h2", version: [0, 4, 19], why: "a flood of empty DATA frames (RUSTSEC-2026-0258)" },
    Floor { name: "rustls", version: [0, 23, 46], why: "RUSTSEC-2026-0285 and RUSTSEC-2026-0346 to 0349" },
    Floor { name: "tonic", version: [0, 12, 3], why: "a refused connection ends the accept loop" },
];

/// One finding for each package of `Cargo.lock` that lies below its floor.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    Ok(below_floors(&lock))
}

fn below_floors(lock: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut name = "";
    for (number, line) in (1..).zip(lock.lines()) {
        if let Some(found) = quoted(line, "name = ") {
            name = found;
        }
        let Some(version) = quoted(line, "version = ") else {
            continue;
        };
        let Some(floor) = FLOORS.iter().find(|floor| floor.name == name) else {
            continue;
        };
        if parse_version(version).is_none_or(|version| version < floor.version) {
            let [major, minor, patch] = floor.version;
            findings.push(Finding::new(
                "Cargo.lock",
                number,
                "floor",
                format!(
                    "{name} {version} is below {major}.{minor}.{patch} ({}): cargo update -p {name}",
                    floor.why
                ),
            ));
        }
    }
    findings
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix('"')?.strip_suffix('"')
}

/// The three numbers of a release. `None` for anything else: a pre-release comes before its release, so it is
/// taken to be below every floor.
fn parse_version(version: &str) -> Option<[u64; 3]> {
    let (numbers, _build) = version.split_once('+').unwrap_or((version, ""));
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let parsed = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(name: &str, version: &str) -> String {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n")
    }

    #[test]
    fn finds_only_what_is_below_its_floor() {
        let cases = [
            ("h2", "0.4.18", 1),
            ("h2", "0.4.19", 0),
            ("h2", "0.4.19-rc.1", 1),
            ("h2", "0.5.0", 0),
            ("h2", "0.4.19+build.3", 0),
            ("rustls", "0.23.45", 1),
            ("rustls", "0.24.0", 0),
            ("h2-proto", "0.1.0", 0),
        ];
        for (name, version, count) in cases {
            assert_eq!(below_floors(&lock(name, version)).len(), count, "{name} {version}");
        }
    }

    #[test]
    fn says_where_and_what_to_do() {
        let finding = &below_floors(&lock("h2", "0.4.2"))[0];
        assert_eq!(
            finding.to_string(),
            "Cargo.lock:3: floor: h2 0.4.2 is below 0.4.19 (a flood of empty DATA frames \
             (RUSTSEC-2026-0258)): cargo update -p h2"
        );
    }
}
