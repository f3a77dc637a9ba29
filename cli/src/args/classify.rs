//! `qbridge classify`.

use std::path::PathBuf;

use clap::Args;

use super::VisionProducts;

/// `qbridge classify`
#[derive(Debug, Args)]
#[command(
    after_help = "Zero-shot classification: each label is put into every template, and a picture's probabilities are a
softmax, at the trained temperature, over its similarity to the labels. They add up to 1 over the
labels that are given, so a picture of nothing among them looks certain too.

Examples:
  qbridge classify clip-vit-base-patch32 cat.png --labels animals.txt
  qbridge classify clip-vit-base-patch32 *.png --labels animals.txt --template \"a drawing of a {}\" --json
  printf 'cat\\ndog\\n' | qbridge classify clip-vit-base-patch32 cat.png --labels - --top 1"
)]
pub struct ClassifyArgs {
    /// Bundle of a CLIP, or its directory as Hugging Face or open_clip has it
    pub checkpoint: PathBuf,
    /// Picture files, or - for standard input
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// File with one label a line, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub labels: PathBuf,
    /// Sentence with {} for the label; several are averaged [default: seven that OpenAI chose for photographs]
    #[arg(long = "template", value_name = "TEMPLATE")]
    pub templates: Vec<String>,
    /// Labels that are printed of each picture, the likeliest first
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// Print {"image", "labels": [{"label", "probability"}]} for each picture
    #[arg(long)]
    pub json: bool,
    /// How both towers multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}
