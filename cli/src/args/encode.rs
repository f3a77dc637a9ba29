//! `qbridge encode`.

use std::path::PathBuf;

use clap::Args;

use super::VisionProducts;

/// `qbridge encode`
#[derive(Debug, Args)]
#[command(
    after_help = "Tensors, all f32, N copies of the picture (1, or the last --batch): pixels [N, 3, S, S],
vision [N, patches + 1, vision width], queries [N, queries, Q-Former width], soft_prompt [N, queries, n_embd].

Examples:
  qbridge encode demo cat.png --out cat.safetensors
  qbridge encode blip2-opt-2.7b/ cat.png --repeat 10 --timings
  qbridge encode demo cat.png --batch 1,1,4,16 --timings
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
    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto)]
    pub vision: VisionProducts,
    /// Encode this many copies of it at once; several numbers one after the other
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=256)
    )]
    pub batch: Vec<u16>,
    /// Encode each this many times
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Print {"batch", "seconds", "preprocess", "forward"} for each repetition
    #[arg(long)]
    pub timings: bool,
}
