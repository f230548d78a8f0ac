//! Lets faults of every kind happen to real clusters under load, for as long as is asked for, and judges what clients
//! saw.
//!
//! `cargo run --release -p skein-cluster-tests --bin chaos -- --seed 1 --minutes 10`

use std::{collections::BTreeMap, env, process::ExitCode, time::Duration};

use skein_cluster_tests::chaos::{self, Fault, Report};

/// Each cluster lives for this long: what clients did must fit into memory when it is judged.
const PIECE: Duration = Duration::from_secs(300);

const USAGE: &str = "\
usage: chaos [--seed N] [--minutes M] [--faults NAME,NAME,...]

  --seed N       draws faults and messages; drawn itself unless given
  --minutes M    how long faults happen, in clusters of 5 minutes each; 5 unless given
  --faults ...   only these; all unless given";

struct Arguments {
    seed: u64,
    length: Duration,
    faults: Vec<Fault>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[tokio::main(flavor = "multi_thread")]
async fn main() -> ExitCode {
    let arguments = match parse(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("chaos: {error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let mut total = Report::default();
    let mut left = arguments.length;
    let mut seed = arguments.seed;
    while !left.is_zero() {
        let length = left.min(PIECE);
        println!("seed {seed}, {} s", length.as_secs());
        match chaos::run(seed, length, &arguments.faults).await {
            Ok(report) => {
                println!("{} faults, {} confirmed: passed", report.events.len(), report.confirmed);
                total.add(report);
            }
            Err((report, why)) => {
                total.add(report);
                println!("{total}");
                eprintln!("{why}\n\nto repeat it: {}", command(seed, length, &arguments.faults));
                return ExitCode::FAILURE;
            }
        }
        left -= length;
        seed = seed.wrapping_add(1);
    }
    println!("{total}\nto repeat it: {}", command(arguments.seed, arguments.length, &arguments.faults));
    ExitCode::SUCCESS
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut values = BTreeMap::new();
    while let Some(name) = given.next() {
        if !["--seed", "--minutes", "--faults"].contains(&name.as_str()) {
            return Err(format!("{name:?} is not known"));
        }
        let value = given.next().ok_or_else(|| format!("{name} needs a value"))?;
        values.insert(name, value);
    }
    let number = |name: &str, default| match values.get(name) {
        Some(text) => text.parse::<u64>().map_err(|_| format!("{name} takes a whole number, not {text:?}")),
        None => Ok(default),
    };
    let faults = match values.get("--faults") {
        Some(names) => names.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => Fault::ALL.to_vec(),
    };
    let length = Duration::from_secs(60)
        * u32::try_from(number("--minutes", 5)?).map_err(|error| error.to_string())?;
    Ok(Arguments { seed: number("--seed", rand::random())?, length, faults })
}

fn command(seed: u64, length: Duration, faults: &[Fault]) -> String {
    let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
    format!(
        "cargo run --release -p skein-cluster-tests --bin chaos -- --seed {seed} --minutes {} --faults {}",
        length.as_secs().div_ceil(60),
        names.join(",")
    )
}
