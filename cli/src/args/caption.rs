//! `qbridge caption`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{EngineArgs, GenerationArgs};

/// `qbridge caption`
#[derive(Debug, Args)]
#[command(
    after_help = "INPUT is a picture, a directory (with those below it), a pattern in quotes, a tar shard (.tar, .tar.gz,
.tgz), a Parquet file with a column of pictures, an http(s) URL at a public address, or - for a list of
these on standard input, one a line.

Each picture is one line: {\"image\", \"caption\", \"error\", ...}. One that cannot be read has its error there,
the others go on, and the exit code is 1 at the end. Ctrl-C finishes what is in flight (exit code 130);
a second one stops at once. docs/caption.md describes the files that --out writes.

Examples:
  qbridge caption demo cat.png dog.png | jq -r '[.image, .caption] | @tsv'
  qbridge caption demo photos/ --out captions.jsonl
  qbridge caption demo photos/ --out captions.jsonl --resume
  qbridge caption demo photos/ --sidecar txt --prefix \"a photo of\" --out captions.csv
  find photos/ -name '*.jpg' -print0 | qbridge caption demo - --null --out captions.parquet
  qbridge caption demo 'shards/*.tar' --shard 3/8 --out captions-3.jsonl --quiet --json"
)]
pub struct CaptionArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// What to caption
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<OsString>,

    /// Entries of the list on standard input end with NUL instead of a line break
    #[arg(short = '0', long, help_heading = "Input")]
    pub null: bool,
    /// Column of Parquet files that holds the pictures [default: image, or the only one that can]
    #[arg(long, value_name = "NAME", help_heading = "Input")]
    pub image_column: Option<String>,
    /// Caption the i-th of n parts, from 1/n to n/n, so that n machines share the work
    #[arg(long, value_name = "I/N", value_parser = Shard::parse, help_heading = "Input")]
    pub shard: Option<Shard>,

    /// File to write [default: JSON lines on standard output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Form of the output [default: by the end of its name, else jsonl]
    #[arg(long, value_enum, help_heading = "Output")]
    pub format: Option<OutputFormat>,
    /// Write each caption beside its picture too: NAME.txt, or NAME.EXT.xmp with a description
    #[arg(long, value_enum, help_heading = "Output")]
    pub sidecar: Option<SidecarFormat>,
    /// Go on with the output of a run that was stopped: skip what is done
    #[arg(long, conflicts_with = "overwrite", help_heading = "Output")]
    pub resume: bool,
    /// Replace output that is there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Write captions as they are done, not in the order of the pictures
    #[arg(long, help_heading = "Output")]
    pub unordered: bool,
    /// No progress bar and no summary
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print a summary in JSON at the end
    #[arg(long, requires = "out", help_heading = "Output")]
    pub json: bool,

    /// What to ask for [default: the bundle's caption prompt]
    #[arg(long, help_heading = "Captions")]
    pub prompt: Option<String>,
    /// Words that each caption begins with; the model continues them
    #[arg(long, value_name = "WORDS", help_heading = "Captions")]
    pub prefix: Option<String>,
    /// Captions of each picture, best first; more than one need --temperature or --num-beams
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64),
        help_heading = "Captions"
    )]
    pub captions: u16,
    /// Write the score of each caption: the mean log-probability of its tokens
    #[arg(long, help_heading = "Captions")]
    pub scores: bool,
    /// Leave out captions that score less, such as -1.5
    #[arg(
        long,
        value_name = "SCORE",
        allow_negative_numbers = true,
        value_parser = parse_score,
        help_heading = "Captions"
    )]
    pub min_score: Option<f32>,
    #[command(flatten, next_help_heading = "Generation")]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,

    /// Pictures that are captioned together
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

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
    /// One Parquet file, written at the end
    Parquet,
}

/// Form of the file beside a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SidecarFormat {
    /// The caption alone, as trainers read it; several captions are several lines
    Txt,
    /// An XMP packet with the caption as dc:description
    Xmp,
}

/// One of several parts of the pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: u64,
    /// At least 1.
    pub count: u64,
}

impl Shard {
    pub(super) fn parse(text: &str) -> Result<Shard, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse::<u64>().ok()?, n.parse::<u64>().ok()?)));
        match numbers {
            Some((i, n)) if (1..=n).contains(&i) => Ok(Shard {
                index: i - 1,
                count: n,
            }),
            _ => Err("expected I/N with I from 1 to N, for example 3/8".to_owned()),
        }
    }
}

fn parse_score(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value <= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number of at most 0: scores are mean log-probabilities".to_owned()),
    }
}
