//! `qbridge encode`.

use std::path::PathBuf;

use clap::Args;

/// `qbridge encode`
#[derive(Debug, Args)]
#[command(
    after_help = "Tensors, all f32: pixels [1, 3, S, S], vision [1, patches + 1, vision width],
queries [1, queries, Q-Former width], soft_prompt [1, queries, n_embd].

Examples:
  qbridge encode demo cat.png --out cat.safetensors
  qbridge encode blip2-opt-2.7b/ cat.png --repeat 10 --timings
  qbridge encode instructblip cat.png --instruction \"what is this?\" --out cat.safetensors"
)]
pub struct EncodeArgs {
    /// Bundle directory, or a checkpoint directory that transformers saved
    pub model: PathBuf,
    /// Picture file, or - for standard input
    pub image: PathBuf,
    /// What the Q-Former reads beside the picture: for InstructBLIP, and only there
    #[arg(long, value_name = "TEXT")]
    pub instruction: Option<String>,
    /// Where to write the tensors
    #[arg(long, required_unless_present = "timings")]
    pub out: Option<PathBuf>,
    /// Encode this many times
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Print {"seconds", "preprocess", "forward"} for each repetition
    #[arg(long)]
    pub timings: bool,
}
