//! `qbridge caption`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, GenerationArgs};

/// `qbridge caption`
#[derive(Debug, Args)]
#[command(
    after_help = "Prints {\"image\", \"text\", \"finish_reason\", \"usage\"} for each picture, in the order given,
or {\"image\", \"error\"} for one that failed; the others go on, and the exit code is 1.

Examples:
  qbridge caption demo photos/*.jpg > captions.jsonl
  qbridge caption demo a.png b.png | jq -r '[.image, .text] | @tsv'"
)]
pub struct CaptionArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Picture files
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// What to ask for [default: the bundle's caption prompt]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Pictures in flight at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub slots: u16,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}
