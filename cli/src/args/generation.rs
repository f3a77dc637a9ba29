//! What every command that generates takes: how to run the language model, and how to choose tokens.

use bridge::language_model::LanguageModelOptions;
use clap::{Args, ValueEnum};
use qformer::checkpoint::Products;

/// How to run the language model.
#[derive(Debug, Clone, Args)]
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
    /// Whether the language model's attention runs as one fused operation
    #[arg(long, value_enum, default_value_t = FlashAttention::Auto, env = "QBRIDGE_FLASH_ATTENTION")]
    pub flash_attention: FlashAttention,
    /// Most rows of one step of the language model, over all requests [default: 512]
    #[arg(long, env = "QBRIDGE_BATCH_SIZE", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch_size: Option<u32>,
    /// Most rows that are computed at once; a larger step is split [default: 512]
    #[arg(long, env = "QBRIDGE_UBATCH_SIZE", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub ubatch_size: Option<u32>,
    /// Most tokens to guess ahead where an answer repeats its prompt or itself; 0 guesses none
    #[arg(long, default_value_t = 0, env = "QBRIDGE_PROMPT_LOOKUP", value_parser = clap::value_parser!(u16).range(..=64))]
    pub prompt_lookup: u16,
    /// Layers of the language model kept on a GPU [default: all, where the build has one]
    #[arg(long, env = "QBRIDGE_GPU_LAYERS", value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub gpu_layers: Option<u32>,
    /// How several GPUs share the language model
    #[arg(long, value_enum, default_value_t = SplitMode::Layer, env = "QBRIDGE_SPLIT_MODE")]
    pub split_mode: SplitMode,
    /// The GPU that holds the language model with `--split-mode none`, from 0
    #[arg(long, default_value_t = 0, env = "QBRIDGE_MAIN_GPU", value_parser = clap::value_parser!(u16).range(..=255))]
    pub main_gpu: u16,
}

impl EngineArgs {
    /// How the weights of the language model are loaded.
    pub fn language_model(&self) -> LanguageModelOptions {
        LanguageModelOptions {
            n_gpu_layers: self.gpu_layers,
            split_mode: match self.split_mode {
                SplitMode::Layer => bridge::language_model::SplitMode::Layer,
                SplitMode::Row => bridge::language_model::SplitMode::Row,
                SplitMode::None => bridge::language_model::SplitMode::None,
            },
            main_gpu: self.main_gpu,
            ..LanguageModelOptions::default()
        }
    }
}

/// Whether attention runs as one fused operation.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FlashAttention {
    /// Where the model allows it and the KV cache is not f32
    Auto,
    /// Always; an error where it is not possible
    On,
    /// Never
    Off,
}

impl From<FlashAttention> for bridge::engine::FlashAttention {
    fn from(flash_attention: FlashAttention) -> Self {
        match flash_attention {
            FlashAttention::Auto => Self::Auto,
            FlashAttention::On => Self::On,
            FlashAttention::Off => Self::Off,
        }
    }
}

/// How several GPUs share the language model.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SplitMode {
    /// Each holds some of the layers and their KV cache
    Layer,
    /// Each holds rows of every matrix
    Row,
    /// One holds all of it
    None,
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
#[derive(Debug, Clone, Args)]
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
