//! Everything that must pass before a merge, in order, with timings. `.ci/run` is this and a check of the tools.

use std::{
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

struct Step {
    name: &'static str,
    /// Arguments of cargo.
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

/// Cheap steps first. Clippy and doc share what they compile, and so do tidy and test; only the last step needs the
/// release profile. Warnings are refused by flags of the last program in the chain and not by RUSTFLAGS, which
/// would compile every dependency again.
const STEPS: [Step; 8] = [
    Step { name: "format", arguments: &["fmt", "--all", "--check"], variables: &[] },
    Step { name: "tidy", arguments: &["xtask", "tidy"], variables: &[] },
    Step { name: "floors", arguments: &["xtask", "floors"], variables: &[] },
    Step {
        name: "clippy",
        arguments: &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        variables: &[],
    },
    Step {
        name: "planted",
        arguments: &[
            "clippy",
            "--locked",
            "-p",
            "skein-node",
            "--features",
            "planted-bugs",
            "--",
            "-D",
            "warnings",
        ],
        variables: &[],
    },
    Step {
        name: "doc",
        arguments: &["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"],
        variables: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step { name: "test", arguments: &["test", "--locked", "--workspace"], variables: &[] },
    Step {
        name: "demo",
        arguments: &[
            "run",
            "--locked",
            "--release",
            "--bin",
            "skein-node",
            "--",
            "demo",
            "--seconds",
            "20",
            // Timers, and whatever waits as long for a dead leader, would take a second.
            "--pause-max",
            "700ms",
            "--json",
        ],
        variables: &[],
    },
];

/// Licences, sources and bans as `deny.toml` has them, for where cargo-deny is installed. Without the advisories,
/// which need a database from the network.
const DENY: Step =
    Step { name: "deny", arguments: &["deny", "check", "licenses", "sources", "bans"], variables: &[] };

/// Runs the steps until one fails, then says how long each took.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let deny = cargo_deny_is_installed().then_some(&DENY);
    let mut timings = Vec::new();
    let mut failed = None;
    for step in deny.into_iter().chain(&STEPS) {
        println!("==> {}: cargo {}", step.name, step.arguments.join(" "));
        let start = Instant::now();
        let status = Command::new("cargo")
            .args(step.arguments)
            .envs(step.variables.iter().copied())
            .current_dir(root)
            .status()
            .with_context(|| format!("cannot run cargo for the step {}", step.name))?;
        timings.push((step.name, start.elapsed()));
        if !status.success() {
            failed = Some(step);
            break;
        }
    }

    println!("==> timings");
    for (name, elapsed) in &timings {
        println!("{name:>10} {:>8.1} s", elapsed.as_secs_f64());
    }
    let total: Duration = timings.iter().map(|(_, elapsed)| *elapsed).sum();
    println!("{:>10} {:>8.1} s", "all", total.as_secs_f64());
    if deny.is_none() {
        println!("cargo-deny is not installed: licences were not checked, floors were");
    }
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(step) => {
            println!("==> {} failed; to repeat it: cargo {}", step.name, step.arguments.join(" "));
            ExitCode::FAILURE
        }
    })
}

fn cargo_deny_is_installed() -> bool {
    Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success())
}
