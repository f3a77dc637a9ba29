//! `qbridge pull`, and what else fetches from a hub takes.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use hub::{Endpoint, ModelName, Revision};

use super::ConversionArgs;

/// `qbridge pull`
#[derive(Debug, Args)]
#[command(
    after_help = "With --llm, only the tensors of ViT, Q-Former and projection are fetched: 4.7 GB instead of 32 GB
for InstructBLIP-Vicuna-7B. After an interruption, the same command goes on where it stopped. What was
fetched stays in the cache directory. HF_TOKEN holds the token for gated and private models; it is
sent to the endpoint alone.

Examples:
  qbridge pull Salesforce/blip2-opt-2.7b --llm-quant Q8_0
  qbridge pull Salesforce/instructblip-vicuna-7b --llm vicuna-7b-v1.1.Q4_K_M.gguf --out instructblip
  qbridge pull Salesforce/blip2-flan-t5-xl --revision main --endpoint https://hub.example.com
  qbridge pull Salesforce/blip2-opt-2.7b --offline --llm-quant Q4_K_M --out blip2-opt-q4"
)]
pub struct PullArgs {
    /// Model on the hub, as OWNER/NAME
    #[arg(value_name = "OWNER/NAME")]
    pub model: ModelName,
    /// Directory to make; must not exist [default: NAME]
    #[arg(long)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub conversion: ConversionArgs,
    #[command(flatten, next_help_heading = "Hub")]
    #[allow(missing_docs)]
    pub hub: HubArgs,
}

/// Where and how models are fetched.
#[derive(Debug, Args)]
pub struct HubArgs {
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    pub revision: Revision,
    /// The hub, or a mirror of it
    #[arg(
        long,
        value_name = "URL",
        env = "HF_ENDPOINT",
        default_value = "https://huggingface.co"
    )]
    pub endpoint: Endpoint,
    /// Directory that keeps what was fetched [default: ~/.cache/qbridge/hub]
    #[arg(long, value_name = "DIR", env = "QBRIDGE_HUB_CACHE")]
    pub cache: Option<PathBuf>,
    /// Make no connection: take what was fetched before
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = FalseyValueParser::new())]
    pub offline: bool,
}
