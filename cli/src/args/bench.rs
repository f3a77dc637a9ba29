//! `qbridge bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::EngineArgs;

/// `qbridge bench`
#[derive(Debug, Args)]
#[command(
    after_help = "Each stage runs as it does for a server's requests, alone and with nothing kept from before. Without a
picture it is a JPEG of 640 x 480 pixels that is the same everywhere, so that figures of two machines can be
compared. Close other programs: the fastest and the slowest run tell how quiet the machine was.

Examples:
  qbridge bench demo
  qbridge bench demo cat.png --slots 8 --threads 2
  qbridge bench demo --repeat 3 --json > bench.json
  qbridge bench demo --only language-model --rows 512
  qbridge bench demo --operations --vision int8"
)]
pub struct BenchArgs {
    /// Bundle directory; with --operations also a checkpoint directory that transformers saved
    pub bundle: PathBuf,
    /// Picture file, or - for standard input [default: one that is made here]
    pub picture: Option<PathBuf>,
    /// Stages to measure [default: all]
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<StageGroup>,
    /// Show where ViT and Q-Former spend their time, operation by operation, in place of the stages
    #[arg(long, conflicts_with = "only")]
    pub operations: bool,
    /// With --operations: copies of the picture that are encoded at once [default: 1]
    #[arg(long, requires = "operations", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub batch: Option<u16>,
    /// Answers that are decoded together, beside one alone
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub slots: u16,
    /// Rows of the prompt that is read: the picture's and tokens
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub rows: u32,
    /// Tokens of the answers that are decoded
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub tokens: u32,
    /// Runs of each stage
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub repeat: u16,
    /// Runs before those, which do not count
    #[arg(long, default_value_t = 2)]
    pub warm_up: u16,
    /// Print one JSON object, with every run and the machine's description
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

/// Some of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StageGroup {
    /// From the picture file to the projection
    Vision,
    /// Reading a prompt and decoding
    LanguageModel,
    /// Captions, end to end
    Captions,
}
