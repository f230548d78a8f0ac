//! Lets faults of every kind happen to real clusters under load, for as long as is asked for, and judges what clients
//! saw; or measures how long publishers wait when each of them happens alone.
//!
//! `cargo run --release -p skein-cluster-tests --bin chaos -- --seed 1 --minutes 10`

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use skein_cluster_tests::chaos::{self, Course, Fault, Order, Report};

/// Each cluster lives for this long: what clients did must fit into memory when it is judged.
const PIECE: Duration = Duration::from_secs(300);

/// How often each fault happens where that is measured.
const EVENTS: &str = "30";

/// Lets faults of every kind happen to real clusters under load, and judges what clients saw.
#[derive(Parser)]
struct Arguments {
    /// Draws faults and messages; drawn itself unless given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long faults happen, in clusters of 5 minutes each.
    #[arg(long, value_name = "M", default_value_t = 5, conflicts_with = "report")]
    minutes: u32,
    /// Lets each fault happen alone, in turn, until each has happened so many times: what the table says then is the
    /// doing of that fault.
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = EVENTS)]
    report: Option<usize>,
    /// Only these faults; all of them unless given, or with --report those that have to do with one node that leaves,
    /// dies or is not heard.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Messages of 1 KiB a second that are published and consumed on top of those that are judged.
    #[arg(long, value_name = "N", default_value_t = 0)]
    load: u64,
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    if arguments.faults.is_empty() {
        arguments.faults = match arguments.report {
            Some(_) => Fault::MEASURED.into(),
            None => Fault::ALL.into(),
        };
    }
    let seed = *arguments.seed.get_or_insert_with(rand::random);
    let mut total = Report::default();
    let mut left = Duration::from_secs(60) * arguments.minutes;
    for seed in (0..).map(|piece| seed.wrapping_add(piece)) {
        let Some(course) = arguments.course(seed, left, &total) else { break };
        // What is dropped ends its nodes and removes what it made.
        let passed = tokio::select! {
            passed = run(&course, &mut total, &arguments) => passed,
            _ = tokio::signal::ctrl_c() => {
                print("interrupted");
                false
            }
        };
        if !passed {
            return ExitCode::FAILURE;
        }
        left = left.saturating_sub(course.length);
    }
    print(&format!("{total}\nto repeat it: {}", arguments.command(seed, arguments.minutes)));
    ExitCode::SUCCESS
}

/// Runs a piece, and adds it to what was run before. False when it failed.
async fn run(course: &Course, total: &mut Report, arguments: &Arguments) -> bool {
    print(&format!("seed {}, up to {} s", course.seed, course.length.as_secs()));
    match chaos::run(course).await {
        Ok(report) => {
            print(&format!("{} faults, {} confirmed: passed", report.fault_count(), report.confirmed));
            total.add(report);
            true
        }
        Err((report, why)) => {
            total.add(report);
            let minutes = u32::try_from(course.length.as_secs().div_ceil(60)).unwrap_or(u32::MAX);
            let command = arguments.command(course.seed, minutes);
            print(&format!("{total}\n{why}\n\nto repeat it: {command}"));
            false
        }
    }
}

impl Arguments {
    /// The next piece, when so much time is left and so much has happened; nothing when that is all.
    fn course(&self, seed: u64, left: Duration, total: &Report) -> Option<Course> {
        let load_per_s = self.load;
        let Some(events) = self.report else {
            let length = left.min(PIECE);
            let faults = self.faults.clone();
            let course =
                Course { seed, length, rounds_max: usize::MAX, faults, order: Order::Drawn, load_per_s };
            return (!left.is_zero()).then_some(course);
        };
        let lacking = |fault: Fault| events.saturating_sub(total.times(fault));
        let faults: Vec<_> = self.faults.iter().copied().filter(|fault| lacking(*fault) > 0).collect();
        let rounds_max = faults.iter().map(|fault| lacking(*fault)).sum();
        let course = Course { seed, length: PIECE, rounds_max, faults, order: Order::InTurn, load_per_s };
        (rounds_max > 0).then_some(course)
    }

    fn command(&self, seed: u64, minutes: u32) -> String {
        let names: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        let how = match self.report {
            Some(events) => format!("--report {events}"),
            None => format!("--minutes {minutes}"),
        };
        let load = if self.load > 0 { format!(" --load {}", self.load) } else { String::new() };
        format!(
            "cargo run --release -p skein-cluster-tests --bin chaos -- --seed {seed} {how}{load} --faults {}",
            names.join(",")
        )
    }
}

#[expect(clippy::print_stdout, reason = "what the program is for")]
fn print(line: &str) {
    println!("{line}");
}
