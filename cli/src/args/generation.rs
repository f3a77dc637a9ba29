//! What every command that generates takes: how to run the language model, and how to choose tokens.

use clap::{Args, ValueEnum};
use qformer::checkpoint::Products;

/// How to run the language model.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// Type of the KV cache
    #[arg(long, value_enum, default_value_t = CacheType::F16, env = "QBRIDGE_CACHE_TYPE")]
    pub cache_type: CacheType,
    /// Context for each sequence, in tokens [default: the model's, at most 4096]
    #[arg(long, env = "QBRIDGE_CTX_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx_size: Option<u32>,
    /// Threads of the language model [default: one for each physical core]
    #[arg(long, env = "QBRIDGE_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}

/// How ViT and Q-Former multiply on a CPU.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum VisionProducts {
    /// In 8 bits where the bundle holds them so (`qbridge convert --vision int8`), else in f32
    Auto,
    /// In f32: as exact as what is stored
    F32,
    /// In 8 bits: faster and a quarter of the memory, whatever is stored
    Int8,
}

impl From<VisionProducts> for Products {
    fn from(products: VisionProducts) -> Self {
        match products {
            VisionProducts::Auto => Products::AsStored,
            VisionProducts::F32 => Products::F32,
            VisionProducts::Int8 => Products::Int8,
        }
    }
}

impl std::fmt::Display for VisionProducts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VisionProducts::Auto => "auto",
            VisionProducts::F32 => "f32",
            VisionProducts::Int8 => "int8",
        })
    }
}

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CacheType {
    /// Half precision: half the memory of f32
    F16,
    /// Full precision: answers equal the f32 reference
    F32,
    /// 8-bit blocks: a quarter of f32's memory
    #[value(name = "q8_0")]
    Q8_0,
}

/// How to choose tokens.
#[derive(Debug, Args)]
pub struct GenerationArgs {
    /// Most tokens of an answer [default: the bundle's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the likeliest token [default: the bundle's]
    #[arg(long, value_parser = parse_temperature)]
    pub temperature: Option<f32>,
    /// Seed of the sampling, for answers that can be repeated
    #[arg(long)]
    pub seed: Option<u64>,
    /// Tokens of an answer before it may end [default: the bundle's]
    #[arg(long)]
    pub min_tokens: Option<u32>,
    /// Beams of a beam search; 1 is none [default: the bundle's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub num_beams: Option<u16>,
    /// Power of the length that beams' scores are divided by: below 0 favours short answers [default: the bundle's]
    #[arg(long, allow_negative_numbers = true, value_parser = parse_length_penalty)]
    pub length_penalty: Option<f32>,
    /// Penalty of tokens that are there already; 1 is none [default: the bundle's]
    #[arg(long, value_parser = parse_repetition_penalty)]
    pub repetition_penalty: Option<f32>,
}

fn parse_length_penalty(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (-10.0..=10.0).contains(&value) => Ok(value),
        _ => Err("expected a number from -10 to 10".to_owned()),
    }
}

fn parse_repetition_penalty(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.01..=10.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0.01 to 10".to_owned()),
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && (0.0..=2.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 2".to_owned()),
    }
}
