//! Arguments in, exit code out: `cargo xtask tidy`, `cargo xtask floors`, `cargo xtask ci`, `cargo xtask planted`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks to its terminal"
)]

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context, Result};

mod ci;
mod floors;
mod planted;
mod repository;
mod tidy;

const USAGE: &str = "\
usage: cargo xtask <command>

  tidy     the rules of this repository that neither rustfmt nor clippy checks
  floors   dependencies that are older than the version that fixed a vulnerability
  ci       everything that must pass before a merge, in order, with timings
  planted  plants one bug after the other, or the one that is named, and sees whether a test notices";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies directly below the root of the repository")?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => report(&tidy::check(&repository::read(root)?)),
        ["floors"] => report(&floors::check(root)?),
        ["ci"] => ci::run(root),
        ["planted"] => planted::run(root, None),
        ["planted", bug] => planted::run(root, Some(bug)),
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn report(findings: &[tidy::Finding]) -> Result<ExitCode> {
    for finding in findings {
        println!("{finding}");
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
