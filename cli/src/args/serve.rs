//! `qbridge serve`.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::EngineArgs;

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
  qbridge serve demo blip2=/srv/bundles/blip2-opt --alias gpt-4o-mini=blip2
  qbridge serve demo clip captions=blip-captions
  qbridge serve --config serve.toml
  qbridge serve demo --no-ui
  qbridge serve demo --host 0.0.0.0 --port 9000 --slots 8 --api-key-file keys.txt
  qbridge serve demo --allow-remote-images=images.example.com,*.example.org
  qbridge serve demo --otlp-endpoint http://127.0.0.1:4318 --log-format json
  qbridge serve demo --tls-cert chain.pem --tls-key key.pem --cors-origin https://app.example.com"
)]
pub struct ServeArgs {
    /// Bundle directories, each under its own name or as NAME=DIR
    #[arg(required = true, value_name = "[NAME=]BUNDLE")]
    pub bundles: Vec<String>,
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
    #[arg(long, env = "QBRIDGE_NO_AUTH", value_parser = BoolishValueParser::new())]
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
    /// Do not serve the page at /
    #[arg(long, env = "QBRIDGE_NO_UI", value_parser = BoolishValueParser::new())]
    pub no_ui: bool,
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
    #[arg(long, env = "QBRIDGE_NO_PREFIX_CACHE", value_parser = BoolishValueParser::new())]
    pub no_prefix_cache: bool,
    /// Form of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "QBRIDGE_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// OpenTelemetry collector that traces go to by OTLP over HTTP; those of the environment (OTEL_EXPORTER_OTLP_ENDPOINT
    /// and so on) where none is given
    #[arg(long, value_name = "URL", env = "QBRIDGE_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
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
