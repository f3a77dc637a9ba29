//! The command line as typed.

use std::path::PathBuf;

use bridge::convert::LlmQuant;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hub::{Endpoint, ModelName, Revision};
use qformer::checkpoint::WeightType;

/// Pictures to any GGUF language model.
#[derive(Debug, Parser)]
#[command(
    name = "qbridge",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage.\nLogs go to stderr; QBRIDGE_LOG=debug shows more."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a question about a picture
    Ask(AskArgs),
    /// Caption pictures, one JSON line each
    Caption(CaptionArgs),
    /// Write a picture's tensors, without a language model
    Encode(EncodeArgs),
    /// Make a bundle from a published checkpoint
    Convert(ConvertArgs),
    /// Make a bundle from a model of the Hugging Face hub
    Pull(PullArgs),
    /// Put a bundle together from a checkpoint and a GGUF, every part as it is
    Bundle(BundleArgs),
    /// Print what a bundle holds
    Inspect(InspectArgs),
    /// Serve a bundle over OpenAI's chat completions API
    Serve(ServeArgs),
}

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

/// `qbridge caption`
#[derive(Debug, Args)]
#[command(
    after_help = "Prints {\"image\", \"text\", \"finish_reason\", \"usage\"} for each picture, in the order given,
or {\"image\", \"error\"} for one that failed; the others go on, and the exit code is 1.

Examples:
  qbridge caption demo photos/*.jpg > captions.jsonl
  qbridge caption demo a.png b.png | jq -r '[.image, .text] | @tsv'"
)]
pub struct CaptionArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Picture files
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// What to ask for [default: the bundle's caption prompt]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Pictures in flight at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub slots: u16,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

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
  qbridge convert blip2_pretrained_flant5xl.pth eva_vit_g.pth --llm flan-t5-xl/ --out blip2-t5
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

/// How a checkpoint becomes a bundle.
#[derive(Debug, Args)]
pub struct ConversionArgs {
    /// The language model: a GGUF, or a directory that transformers saved [default: the
    /// checkpoint's own]
    #[arg(long, value_name = "PATH")]
    pub llm: Option<PathBuf>,
    /// Precision of the language model, such as Q4_K_M, Q8_0, F16 or F32; a GGUF stays as it is
    /// [default: Q4_K_M]
    #[arg(long, value_name = "TYPE")]
    pub llm_quant: Option<LlmQuant>,
    /// Element type of ViT, Q-Former and projection: f16, bf16, f32, or int8 for a file of half f16's size
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_weight_type)]
    pub vision: WeightType,
    /// Side of the pictures it shall read, in pixels; the ViT's positions are interpolated
    /// [default: the checkpoint's]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=2048))]
    pub image_size: Option<u16>,
    /// bert-base-uncased's vocab.txt or tokenizer.json, for an InstructBLIP in .pth files, which lack it
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

/// `qbridge inspect`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qbridge inspect demo
  qbridge inspect demo --verify")]
pub struct InspectArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Also read every file and compare its SHA-256
    #[arg(long)]
    pub verify: bool,
}

fn parse_alias(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(alias, name)| !alias.is_empty() && !name.is_empty())
        .map(|(alias, name)| (alias.to_owned(), name.to_owned()))
        .ok_or_else(|| "expected ALIAS=NAME, for example gpt-4o-mini=qbridge-demo".to_owned())
}

/// `qbridge serve`
#[derive(Debug, Args)]
#[command(
    after_help = "API keys, comma-separated, are also taken from QBRIDGE_API_KEYS.

Examples:
  qbridge serve demo
  qbridge serve demo blip2=/srv/bundles/blip2-opt --alias gpt-4o-mini=demo
  qbridge serve --config serve.toml
  qbridge serve demo --host 0.0.0.0 --port 9000 --slots 8 --api-key-file keys.txt
  qbridge serve demo --allow-remote-images=images.example.com,*.example.org
  qbridge serve demo --tls-cert chain.pem --tls-key key.pem --cors-origin https://app.example.com"
)]
pub struct ServeArgs {
    /// Bundle directories, each under its own name or as NAME=DIR
    #[arg(required = true, value_name = "[NAME=]BUNDLE")]
    pub bundles: Vec<String>,
    /// TOML file whose keys are the names of these options; they win over it
    #[arg(long, value_name = "FILE", env = "QBRIDGE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Another name for a model; may be repeated
    #[arg(
        long = "alias",
        value_name = "ALIAS=NAME",
        value_delimiter = ',',
        env = "QBRIDGE_ALIAS",
        value_parser = parse_alias
    )]
    pub aliases: Vec<(String, String)>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1", env = "QBRIDGE_HOST")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080, env = "QBRIDGE_PORT")]
    pub port: u16,
    /// Requests that generate at once
    #[arg(long, default_value_t = 4, env = "QBRIDGE_SLOTS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: u16,
    /// Requests that may wait beside those; more are told to come back later
    #[arg(long, default_value_t = 64, env = "QBRIDGE_QUEUE", value_parser = clap::value_parser!(u16).range(1..))]
    pub queue: u16,
    /// Seconds that a whole request may take
    #[arg(long, default_value_t = 600, env = "QBRIDGE_REQUEST_TIMEOUT", value_parser = clap::value_parser!(u32).range(1..))]
    pub request_timeout: u32,
    /// Seconds that it may take, waiting included, until an answer begins
    #[arg(long, default_value_t = 300, env = "QBRIDGE_FIRST_TOKEN_TIMEOUT", value_parser = clap::value_parser!(u32).range(1..))]
    pub first_token_timeout: u32,
    /// Seconds that it may wait for a slot, with the pictures before it and its own
    #[arg(long, default_value_t = 120, env = "QBRIDGE_QUEUE_TIMEOUT", value_parser = clap::value_parser!(u32).range(1..))]
    pub queue_timeout: u32,
    /// Seconds that fetching its pictures may take
    #[arg(long, default_value_t = 10, env = "QBRIDGE_FETCH_TIMEOUT", value_parser = clap::value_parser!(u32).range(1..))]
    pub fetch_timeout: u32,
    /// MiB kept of pictures seen before, for each model
    #[arg(long, default_value_t = 256, env = "QBRIDGE_IMAGE_CACHE")]
    pub image_cache: u32,
    /// File with API keys, one a line; requests must then show one
    #[arg(long, env = "QBRIDGE_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Answer everyone without a key, on addresses that other machines reach too
    #[arg(long, env = "QBRIDGE_NO_AUTH")]
    pub no_auth: bool,
    /// Names that requests may call a server on this machine by, beside localhost, where there are no keys
    #[arg(
        long = "allow-host",
        value_name = "NAME",
        value_delimiter = ',',
        env = "QBRIDGE_ALLOW_HOST"
    )]
    pub allow_hosts: Vec<String>,
    /// Origins whose pages may use the server from a browser, or *
    #[arg(
        long = "cors-origin",
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "QBRIDGE_CORS_ORIGIN"
    )]
    pub cors_origins: Vec<server::CorsOrigin>,
    /// Certificate chain (PEM) to serve https with
    #[arg(long, requires = "tls_key", env = "QBRIDGE_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, requires = "tls_cert", env = "QBRIDGE_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Fetch pictures from http(s) URLs at public addresses [HOSTS: only from these; *.NAME for all below NAME]
    #[arg(
        long,
        value_name = "HOSTS",
        num_args = 0..,
        default_missing_value = "*",
        require_equals = true,
        value_delimiter = ',',
        env = "QBRIDGE_ALLOW_REMOTE_IMAGES"
    )]
    pub allow_remote_images: Option<Vec<String>>,
    /// Compute every prompt from its beginning, whatever was computed before
    #[arg(long, env = "QBRIDGE_NO_PREFIX_CACHE")]
    pub no_prefix_cache: bool,
    /// Form of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "QBRIDGE_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Directory below which file:// URLs may name pictures
    #[arg(long, env = "QBRIDGE_MEDIA_PATH")]
    pub media_path: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

/// Form of a log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}
