//! `qbridge ask`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, GenerationArgs};

/// `qbridge ask`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qbridge ask demo cat.png \"what is this?\"
  qbridge ask demo cat.png \"is this an animal?\" --json | jq -r .text
  qbridge ask blip2-opt cat.png \"Question: what is this? Answer:\" --raw
  qbridge ask instructblip 1.png \"what happens?\" --frame 2.png --frame 3.png --frame 4.png
  curl -s https://example.com/cat.png | qbridge ask demo - \"what is this?\"")]
pub struct AskArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Picture file (PNG, JPEG, WebP, GIF, BMP, TIFF), or - for standard input
    pub image: PathBuf,
    /// The question
    pub question: String,
    /// The next frame of a video, after the picture; may be repeated
    #[arg(long = "frame", value_name = "FILE")]
    pub frames: Vec<PathBuf>,
    /// Send the question as it is, without the prompt template
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object when done, instead of streaming text
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}
