//! `qbridge completion` and `qbridge man`: what a shell and `man` know of the commands, made from their definitions.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::args::{Cli, CompletionArgs, ManArgs};

/// Begins the examples of a command's `--help`.
const EXAMPLES: &str = "Examples:\n";

/// Runs `qbridge completion`.
pub fn completion(args: &CompletionArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `qbridge man`; prints the files that it wrote.
pub fn man(args: &ManArgs) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut paths = Vec::new();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let man = Man::new(command.clone()).source(concat!("qbridge ", env!("CARGO_PKG_VERSION")));
        let path = args.out.join(man.get_filename());
        std::fs::write(&path, page(&man, command)?).with_context(|| path.display().to_string())?;
        paths.push(path);
    }
    let mut stdout = std::io::stdout().lock();
    for path in paths {
        writeln!(stdout, "{}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A manual page. What `--help` says behind the options is the page's notes and examples, the examples line by line.
fn page(man: &Man, command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let after = command.get_after_help().map(ToString::to_string);
    let after = after.unwrap_or_default();
    let (notes, examples) = after.split_once(EXAMPLES).unwrap_or((&after, ""));
    let mut rest = Roff::new();
    if !notes.trim().is_empty() {
        rest.control("SH", ["NOTES"]);
        for paragraph in notes.trim().split("\n\n") {
            rest.control("PP", []);
            rest.text([roman(paragraph)]);
        }
    }
    if !examples.is_empty() {
        rest.control("SH", ["EXAMPLES"]);
        rest.control("nf", []);
        for line in examples.lines() {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
    if !command.has_subcommands() {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([bold("qbridge"), roman("(1)")]);
    }
    rest.to_writer(&mut page)?;
    Ok(page)
}
