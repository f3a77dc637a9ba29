//! The command line as typed.

mod ask;
mod caption;
mod chat;
mod convert;
mod encode;
mod eval;
mod generation;
mod inspect;
mod pull;
mod serve;

use clap::{Parser, Subcommand};

pub use ask::{AskArgs, Asked};
pub use caption::{CaptionArgs, OutputFormat, Shard, SidecarFormat};
pub use chat::ChatArgs;
pub use convert::{BundleArgs, ConversionArgs, ConvertArgs, NamingArgs};
pub use encode::EncodeArgs;
pub use eval::EvalArgs;
pub use generation::{CacheType, EngineArgs, GenerationArgs, VisionProducts};
pub use inspect::InspectArgs;
pub use pull::{HubArgs, PullArgs};
pub use serve::{LogFormat, ServeArgs};

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
