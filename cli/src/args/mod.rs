//! The command line as typed.

mod ask;
mod bench;
mod caption;
mod chat;
mod classify;
mod convert;
mod doctor;
mod encode;
mod eval;
mod filter;
mod generation;
mod index;
mod inspect;
mod matching;
mod pull;
mod serve;
mod shell;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use ask::{AskArgs, Asked, check_choices, parse_choice, repeated};
pub use bench::{BenchArgs, StageGroup};
pub use caption::{CaptionArgs, OutputFormat, Shard, SidecarFormat};
pub use chat::ChatArgs;
pub use classify::ClassifyArgs;
pub use convert::{BundleArgs, ConversionArgs, ConvertArgs, NamingArgs};
pub use doctor::DoctorArgs;
pub use encode::EncodeArgs;
pub use eval::EvalArgs;
pub use filter::{BootstrapArgs, FilterArgs, TableArgs};
pub use generation::{CacheType, EngineArgs, GenerationArgs, VisionProducts};
pub use index::{IndexArgs, SearchArgs};
pub use inspect::InspectArgs;
pub use matching::{EmbedArgs, MatchArgs};
pub use pull::{HubArgs, PullArgs};
pub use serve::{LogFormat, ServeArgs};
pub use shell::{CompletionArgs, ManArgs};

/// Pictures to any GGUF language model.
#[derive(Debug, Parser)]
#[command(
    name = "qbridge",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage.\nLogs go to stderr; QBRIDGE_LOG=debug shows more."
)]
pub struct Cli {
    /// TOML file of settings, a table a command [default: ~/.config/qbridge/config.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "QBRIDGE_CONFIG",
        display_order = 999
    )]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask questions about pictures
    Ask(AskArgs),
    /// Caption pictures, many of them, from wherever they are
    Caption(CaptionArgs),
    /// Talk about pictures, in a terminal
    Chat(ChatArgs),
    /// Measure a bundle on a benchmark, in its published files
    Eval(EvalArgs),
    /// Write a picture's tensors, without a language model
    Encode(EncodeArgs),
    /// Score how well texts fit a picture, with a bundle made for it
    Match(MatchArgs),
    /// Print the features of pictures and texts, with a bundle made for it
    Embed(EmbedArgs),
    /// Tell which of your labels fits a picture, with a CLIP
    Classify(ClassifyArgs),
    /// Put the features of pictures into a file that can be searched
    Index(IndexArgs),
    /// Find pictures of an index by a text or a picture
    Search(SearchArgs),
    /// Keep the rows of a table whose texts fit their pictures
    Filter(FilterArgs),
    /// Caption pictures, and keep those texts, old and new, that fit
    Bootstrap(BootstrapArgs),
    /// Make a bundle from a published checkpoint
    Convert(ConvertArgs),
    /// Make a bundle from a model of the Hugging Face hub
    Pull(PullArgs),
    /// Put a bundle together from a checkpoint and a GGUF, every part as it is
    Bundle(BundleArgs),
    /// Print what a bundle holds
    Inspect(InspectArgs),
    /// Serve bundles over OpenAI's chat completions and embeddings API
    Serve(ServeArgs),
    /// Tell what this machine can do, what is missing, and what fits into its memory
    Doctor(DoctorArgs),
    /// Measure each stage from a picture to a caption
    Bench(BenchArgs),
    /// Print a script that completes commands and flags in a shell
    Completion(CompletionArgs),
    /// Write the manual pages
    Man(ManArgs),
}
