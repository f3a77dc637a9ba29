//! `qbridge chat`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, GenerationArgs};

/// `qbridge chat`
#[derive(Debug, Args)]
#[command(
    after_help = "What is typed goes to the model; lines that begin with / do something else, and /help lists them. Ctrl-C
stops an answer, Ctrl-D ends. Where standard input is no terminal, each line is read as if it were typed, and
standard output holds answers alone. docs/ask.md has more.

Examples:
  qbridge chat demo
  qbridge chat demo cat.png
  qbridge chat demo --load talk.json
  printf 'what is this?\\nis it an animal?\\n' | qbridge chat demo cat.png"
)]
pub struct ChatArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Pictures to begin with
    #[arg(value_name = "PICTURE")]
    pub pictures: Vec<PathBuf>,
    /// Go on with a conversation that /save wrote
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Print one JSON object for each answer, instead of streaming text
    #[arg(long)]
    pub json: bool,
    /// Draw no pictures in the terminal
    #[arg(long)]
    pub no_pictures: bool,
    /// Keep no history of what is typed
    #[arg(long)]
    pub no_history: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}
