//! `qbridge`: pictures to any GGUF language model. This binary only wires:
//! arguments in, text or JSON lines out.

mod args;
mod commands;
mod config;
mod input;
mod openmp;
mod progress;

use std::process::ExitCode;

use crate::args::{Command, LogFormat};

fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("qbridge: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    openmp::bound_spinning();
    let (default_level, format) = match &cli.command {
        Command::Serve(args) => ("info", args.log_format),
        _ => ("warn", LogFormat::Text),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("QBRIDGE_LOG")
                .unwrap_or_else(|_| default_level.into()),
        )
        .with_writer(server::log::lines(std::io::stderr))
        .with_ansi(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let result = match &cli.command {
        Command::Ask(args) => commands::ask::run(args),
        Command::Caption(args) => commands::caption::run(args),
        Command::Encode(args) => commands::encode::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Bundle(args) => commands::convert::run_bundle(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Serve(args) => commands::serve::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qbridge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output went away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
