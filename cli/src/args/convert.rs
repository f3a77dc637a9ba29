//! `qbridge convert` and `qbridge bundle`.

use std::path::PathBuf;

use bridge::convert::LlmQuant;
use clap::Args;
use qformer::checkpoint::WeightType;

use super::HubArgs;

/// What the bundle is called, and how it prompts.
#[derive(Debug, Args)]
pub struct NamingArgs {
    /// Name of the model [default: the output directory's]
    #[arg(long)]
    pub name: Option<String>,
    /// Prompt layout: blip2, instructblip, minigpt4, chat-template, or a TOML file [default: the checkpoint's family's]
    #[arg(long)]
    pub layout: Option<String>,
    /// Licence of a part, as PART=NAME; may be repeated
    #[arg(long = "license", value_name = "PART=NAME", value_parser = parse_license)]
    pub licenses: Vec<(String, String)>,
}

/// `qbridge bundle`
#[derive(Debug, Args)]
#[command(
    after_help = "Every part as it is: `convert` with a GGUF that is ready and tensors in the types they are stored in.

Examples:
  qbridge bundle my-blip2/ --llm model.gguf --out my-bundle
  qbridge bundle my-bridge/ --llm smollm2.gguf --layout chat-template --out demo
  qbridge bundle my-bridge/ --llm smollm2.gguf --layout prompt.toml --out demo"
)]
pub struct BundleArgs {
    /// Directory that transformers saved: config.json, preprocessor_config.json, safetensors
    pub checkpoint: PathBuf,
    /// The language model
    #[arg(long)]
    pub llm: PathBuf,
    /// Directory to make; must not exist
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub naming: NamingArgs,
}

/// `qbridge convert`
#[derive(Debug, Args)]
#[command(
    after_help = "The bundle appears only once it is whole. After an interruption, the same command goes on
where it stopped.

Examples:
  qbridge convert blip2-opt-2.7b/ --llm-quant Q8_0 --out blip2-opt
  qbridge convert Salesforce/blip2-flan-t5-xl --out blip2-t5
  qbridge convert instructblip-vicuna-7b/ --llm vicuna-7b-v1.1.Q4_K_M.gguf --out instructblip
  qbridge convert my-blip2/ --llm model.F16.gguf --llm-quant Q4_0 --out my-bundle
  qbridge convert blip2_pretrained_flant5xl.pth eva_vit_g.pth --llm flan-t5-xl/ --out blip2-t5
  qbridge convert Salesforce/blip2-itm-vit-g --out blip2-itm
  qbridge convert clip-vit-base-patch32/ --out clip
  qbridge convert blip-image-captioning-base/ --out blip-captions
  qbridge convert blip2_pretrained.pth eva_vit_g.pth --qformer-tokenizer vocab.txt --out blip2-stage1
  qbridge convert prerained_minigpt4_7b.pth blip2_pretrained_flant5xxl.pth eva_vit_g.pth \\
      --llm vicuna-7b-v0.gguf --out minigpt4"
)]
pub struct ConvertArgs {
    /// Directory that transformers saved, the .pth files of LAVIS or MiniGPT-4, or OWNER/NAME of
    /// the hub, as `qbridge pull` takes it
    #[arg(required = true, value_name = "SRC")]
    pub sources: Vec<PathBuf>,
    /// Directory to make; must not exist
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub conversion: ConversionArgs,
    #[command(flatten, next_help_heading = "Where SRC is a model of the hub")]
    #[allow(missing_docs)]
    pub hub: HubArgs,
}

/// How a checkpoint becomes a bundle.
#[derive(Debug, Args)]
pub struct ConversionArgs {
    /// The language model: a GGUF, or a directory that transformers saved [default: the
    /// checkpoint's own]
    #[arg(long, value_name = "PATH")]
    pub llm: Option<PathBuf>,
    /// Precision of the language model, such as Q4_K_M, Q4_0, Q8_0, F16 or F32 [default: Q4_K_M;
    /// a GGUF stays as it is]
    #[arg(long, value_name = "TYPE")]
    pub llm_quant: Option<LlmQuant>,
    /// Element type of ViT, Q-Former and projection: f16, bf16, f32, or int8 for a file of half f16's size
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_weight_type)]
    pub vision: WeightType,
    /// Side of the pictures it shall read, in pixels; the ViT's positions are interpolated
    /// [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=2048))]
    pub image_size: Option<u16>,
    /// bert-base-uncased's vocab.txt or tokenizer.json, for a Q-Former in .pth files that reads text: they lack it
    #[arg(long, value_name = "PATH")]
    pub qformer_tokenizer: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub naming: NamingArgs,
}

fn parse_weight_type(text: &str) -> Result<WeightType, String> {
    match text {
        "f16" => Ok(WeightType::F16),
        "bf16" => Ok(WeightType::Bf16),
        "f32" => Ok(WeightType::F32),
        "int8" => Ok(WeightType::Int8),
        _ => Err("expected f16, bf16, f32 or int8".to_owned()),
    }
}

fn parse_license(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(part, name)| !part.is_empty() && !name.is_empty())
        .map(|(part, name)| (part.to_owned(), name.to_owned()))
        .ok_or_else(|| "expected PART=NAME, for example llm=Apache-2.0".to_owned())
}
