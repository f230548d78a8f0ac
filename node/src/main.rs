//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skein_node::{program, telemetry};

/// A node of Skein, a replicated message queue.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node as its configuration says, until SIGTERM or SIGINT; a second one ends it at once.
    Run(program::RunOptions),
    /// Ask a running node whether it is well. Ends with an error when it is not, or does not answer.
    Health(program::HealthOptions),
    /// Run a cluster of real processes on this machine until Ctrl-C, for trying things out.
    Dev(program::DevOptions),
    /// Publish and consume on such a cluster while its leader is killed again and again, and check that nothing is
    /// lost.
    Demo(program::DemoOptions),
    /// Show what a stopped node has on disk, and check all of it. Never writes there. Ends with an error when something
    /// is damaged.
    Dump(program::DumpOptions),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(options) => {
            telemetry::start();
            program::run(&options)
        }
        Command::Health(options) => program::health(&options),
        Command::Dev(options) => program::dev(&options),
        Command::Demo(options) => program::demo(&options),
        Command::Dump(options) => program::dump(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one line that tells whoever started the process why it ended.
            #[expect(clippy::print_stderr, reason = "the program's last word")]
            {
                eprintln!("skein-node: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
