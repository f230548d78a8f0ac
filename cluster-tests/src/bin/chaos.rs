//! Lets faults of every kind happen to real clusters under load, for as long as is asked for, and judges what clients
//! saw.
//!
//! `cargo run --release -p skein-cluster-tests --bin chaos -- --seed 1 --minutes 10`

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use skein_cluster_tests::chaos::{self, Fault, Report};

/// Each cluster lives for this long: what clients did must fit into memory when it is judged.
const PIECE: Duration = Duration::from_secs(300);

/// Lets faults of every kind happen to real clusters under load, and judges what clients saw.
#[derive(Parser)]
struct Arguments {
    /// Draws faults and messages; drawn itself unless given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long faults happen, in clusters of 5 minutes each.
    #[arg(long, value_name = "M", default_value_t = 5)]
    minutes: u32,
    /// Only these faults.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_values_t = Fault::ALL)]
    faults: Vec<Fault>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[tokio::main(flavor = "multi_thread")]
async fn main() -> ExitCode {
    let Arguments { seed: given, minutes, faults } = Arguments::parse();
    let first_seed = given.unwrap_or_else(rand::random);
    let all = Duration::from_secs(60) * minutes;
    let mut total = Report::default();
    let mut left = all;
    let mut seed = first_seed;
    while !left.is_zero() {
        let length = left.min(PIECE);
        println!("seed {seed}, {} s", length.as_secs());
        match chaos::run(seed, length, &faults).await {
            Ok(report) => {
                println!("{} faults, {} confirmed: passed", report.events.len(), report.confirmed);
                total.add(report);
            }
            Err((report, why)) => {
                total.add(report);
                println!("{total}");
                eprintln!("{why}\n\nto repeat it: {}", command(seed, length, &faults));
                return ExitCode::FAILURE;
            }
        }
        left -= length;
        seed = seed.wrapping_add(1);
    }
    println!("{total}\nto repeat it: {}", command(first_seed, all, &faults));
    ExitCode::SUCCESS
}

fn command(seed: u64, length: Duration, faults: &[Fault]) -> String {
    let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
    format!(
        "cargo run --release -p skein-cluster-tests --bin chaos -- --seed {seed} --minutes {} --faults {}",
        length.as_secs().div_ceil(60),
        names.join(",")
    )
}
