//! `qbridge filter` and `qbridge bootstrap`.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, GenerationArgs, Shard, VisionProducts};

/// `qbridge filter`
#[derive(Debug, Args)]
#[command(
    after_help = "TABLE is JSON lines (.jsonl), CSV with a header (.csv) or Parquet (.parquet), with a column of pictures and one
of texts. Pictures are paths, which begin where the command is run (in Parquet at the file, or with --images at
a directory), http(s) URLs at public addresses, and in Parquet also bytes. Rows that are kept are as they were.

A row is kept where its text scores enough: --min-itm of the matching head's probability, --min-itc of the largest
cosine, or both. What cannot be read is told on standard error and dropped, and the exit code is 1 at the end.
With --out, scores are kept in FILE.partial as they come and --resume goes on with them.

Examples:
  qbridge filter blip2-itm pairs.jsonl --text-column caption --min-itm 0.3 > kept.jsonl
  qbridge filter blip2-itm pairs.csv --text-column caption --min-itm 0.3 --min-itc 0.2 --out kept.csv
  qbridge filter blip2-itm pairs.jsonl --text-column caption --min-itc 0.25 --scores --out kept.jsonl --resume
  qbridge filter blip2-itm pairs.jsonl --text-column caption --min-itm 0.3 --dropped bad.jsonl --out good.jsonl"
)]
pub struct FilterArgs {
    /// Bundle directory with heads that compare pictures and texts
    pub bundle: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub table: TableArgs,

    /// Least probability of a match, from 0 to 1
    #[arg(long, value_name = "P", value_parser = parse_probability, required_unless_present_any = ["min_itc", "scores"])]
    pub min_itm: Option<f32>,
    /// Least similarity, from -1 to 1
    #[arg(long, value_name = "COS", allow_negative_numbers = true, value_parser = parse_cosine)]
    pub min_itc: Option<f32>,

    /// File to write, in the table's own form [default: standard output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// File for the rows that are dropped
    #[arg(long, value_name = "FILE", requires = "out", help_heading = "Output")]
    pub dropped: Option<PathBuf>,
    /// Add the columns similarity and probability
    #[arg(long, help_heading = "Output")]
    pub scores: bool,
    /// Go on with the scores of a run that was stopped
    #[arg(
        long,
        requires = "out",
        conflicts_with = "overwrite",
        help_heading = "Output"
    )]
    pub resume: bool,
    /// Replace output that is there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// No progress bar and no summary
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print a summary in JSON at the end
    #[arg(long, requires = "out", help_heading = "Output")]
    pub json: bool,

    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}

/// A table of pictures and texts.
#[derive(Debug, Clone, Args)]
pub struct TableArgs {
    /// Table with pictures and texts
    #[arg(value_name = "TABLE")]
    pub table: PathBuf,
    /// Column that holds the texts
    #[arg(long, value_name = "NAME", help_heading = "Input")]
    pub text_column: String,
    /// Column that holds the pictures [default: image; of Parquet also the only one that can]
    #[arg(long, value_name = "NAME", help_heading = "Input")]
    pub image_column: Option<String>,
    /// Directory that relative paths of pictures begin at
    #[arg(long, value_name = "DIR", help_heading = "Input")]
    pub images: Option<PathBuf>,
}

/// `qbridge bootstrap`
#[derive(Debug, Args)]
#[command(
    after_help = "BLIP's captioning and filtering (Li et al. 2022, arXiv:2201.12086) as one pipeline: each picture is captioned by
a head that writes (ITG), its own text and the new one are each read beside it by the head that matches (ITM),
and those that score enough are kept. TABLE is what `qbridge filter` takes.

Each picture is one line: {\"image\", \"texts\", \"dropped\", \"error\"}; each text says where it came from:
{\"text\", \"source\", \"similarity\", \"probability\"}, of source web or synthetic. One that cannot be read has its
error there, and the exit code is 1 at the end. Ctrl-C finishes what is in flight (exit code 130).

Examples:
  qbridge bootstrap blip2-itm pairs.jsonl --text-column caption --out clean.jsonl
  qbridge bootstrap blip2-itm pairs.jsonl --text-column caption --min-itm 0.3 --out clean.jsonl --resume
  qbridge bootstrap blip2-itm pairs.csv --text-column caption --captioner demo | jq -c '.texts[]'"
)]
pub struct BootstrapArgs {
    /// Bundle directory with heads that compare pictures and texts
    pub bundle: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub table: TableArgs,
    /// Do the i-th of n parts, from 1/n to n/n, so that n machines share the work
    #[arg(long, value_name = "I/N", value_parser = Shard::parse, help_heading = "Input")]
    pub shard: Option<Shard>,

    /// Least probability of a match, from 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = parse_probability)]
    pub min_itm: f32,

    /// File to write [default: JSON lines on standard output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Go on with the output of a run that was stopped: skip what is done
    #[arg(
        long,
        requires = "out",
        conflicts_with = "overwrite",
        help_heading = "Output"
    )]
    pub resume: bool,
    /// Replace output that is there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// No progress bar and no summary
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print a summary in JSON at the end
    #[arg(long, requires = "out", help_heading = "Output")]
    pub json: bool,

    /// Bundle that writes the captions, as `qbridge caption` would [default: BUNDLE's own head]
    #[arg(long, value_name = "DIR", help_heading = "Captions")]
    pub captioner: Option<PathBuf>,
    /// What to ask of it [default: its caption prompt]
    #[arg(long, requires = "captioner", help_heading = "Captions")]
    pub prompt: Option<String>,
    #[command(flatten, next_help_heading = "Generation")]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,

    /// Pictures that the captioner works on together
    #[arg(
        long,
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = "Engine"
    )]
    pub slots: u16,
    #[command(flatten, next_help_heading = "Engine")]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse(text, 0.0).ok_or_else(|| "expected a probability from 0 to 1".to_owned())
}

fn parse_cosine(text: &str) -> Result<f32, String> {
    parse(text, -1.0).ok_or_else(|| "expected a cosine from -1 to 1".to_owned())
}

fn parse(text: &str, least: f32) -> Option<f32> {
    let value: f32 = text.parse().ok()?;
    (least..=1.0).contains(&value).then_some(value)
}
