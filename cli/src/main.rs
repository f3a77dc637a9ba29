//! `qbridge`: pictures to any GGUF language model. This binary only wires:
//! arguments in, text or JSON lines out.

mod args;
mod batch;
mod commands;
mod config;
mod directories;
mod heads;
mod input;
mod inputs;
mod machine;
mod openmp;
mod progress;
mod signals;
mod tables;
mod terminal;
mod told;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::args::{Command, LogFormat};
use crate::told::told;

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("qbridge: {}", told(&error));
            return ExitCode::FAILURE;
        }
    };
    openmp::bound_spinning(match &cli.command {
        Command::Caption(_) | Command::Eval(_) => true,
        Command::Ask(args) => args.jsonl.is_some(),
        _ => false,
    });
    let (default_level, format) = match &cli.command {
        Command::Serve(args) => ("info", args.log_format),
        _ => ("warn", LogFormat::Text),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(log_filter(default_level))
        .with_writer(server::log::lines(std::io::stderr))
        .with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let result = match &cli.command {
        Command::Ask(args) => commands::ask::run(args),
        Command::Caption(args) => commands::caption::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Encode(args) => commands::encode::run(args),
        Command::Match(args) => commands::matching::run_match(args),
        Command::Embed(args) => commands::matching::run_embed(args),
        Command::Classify(args) => commands::classify::run(args),
        Command::Index(args) => commands::index::run(args),
        Command::Search(args) => commands::search::run(args),
        Command::Filter(args) => commands::filter::run(args),
        Command::Bootstrap(args) => commands::bootstrap::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Pull(args) => commands::pull::run(args),
        Command::Bundle(args) => commands::convert::run_bundle(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Completion(args) => commands::shell::completion(args),
        Command::Man(args) => commands::shell::man(args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qbridge: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// What is logged. ureq, which fetches from hubs, writes whole requests to its
/// trace, the token among them, and so has no say.
fn log_filter(default_level: &str) -> EnvFilter {
    let filter =
        EnvFilter::try_from_env("QBRIDGE_LOG").unwrap_or_else(|_| EnvFilter::new(default_level));
    ["ureq=error", "ureq_proto=error"]
        .into_iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive)
}

/// Whether the reader of our output went away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
