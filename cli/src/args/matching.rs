//! `qbridge match` and `qbridge embed`.

use std::path::PathBuf;

use clap::Args;

use super::VisionProducts;

/// `qbridge match`
#[derive(Debug, Args)]
#[command(
    after_help = "Two scores of each text. similarity is the largest cosine between one of the picture's features and the
text's (ITC): cheap, from -1 to 1, and 0.3 to 0.45 for what fits in the published BLIP-2. probability is
what the matching head says of both read together (ITM), from 0 to 1: slower and sharper. A CLIP has no
such head and tells the similarity alone.

Examples:
  qbridge match blip2-itm cat.png \"a cat\" \"a dog\" \"a cat on a sofa\"
  qbridge match blip2-itm cat.png \"a cat\" --json | jq .probability
  qbridge match blip2-itm cat.png - < captions.txt
  qbridge match clip cat.png \"a cat\" \"a dog\""
)]
pub struct MatchArgs {
    /// Bundle directory: BLIP-2's first stage, a BLIP for retrieval (itm), or a CLIP
    pub bundle: PathBuf,
    /// Picture file, or - for standard input
    pub image: PathBuf,
    /// Texts, or - for one a line on standard input
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Print {"text", "similarity", "probability"} for each text
    #[arg(long)]
    pub json: bool,
    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}

/// `qbridge embed`
#[derive(Debug, Args)]
#[command(
    after_help = "One JSON line each, pictures first: {\"image\", \"features\"} with one row for each query, {\"text\", \"features\"}
with one row (a picture has one, too, but by BLIP-2's first stage). Rows have length 1; the similarity of `qbridge match` is the largest dot product of a
picture's rows with the text's.

Examples:
  qbridge embed blip2-itm cat.png dog.png > pictures.jsonl
  qbridge embed blip2-itm --text \"a cat\" --text \"a dog\" | jq '.features | length'
  qbridge embed clip cat.png --text \"a cat\""
)]
pub struct EmbedArgs {
    /// Bundle directory: BLIP-2's first stage, a BLIP for retrieval (itm), or a CLIP
    pub bundle: PathBuf,
    /// Picture files, or - for standard input
    #[arg(value_name = "IMAGE", required_unless_present = "texts")]
    pub images: Vec<PathBuf>,
    /// A text; may be repeated
    #[arg(long = "text", value_name = "TEXT")]
    pub texts: Vec<String>,
    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}
