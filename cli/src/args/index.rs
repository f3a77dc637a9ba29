//! `qbridge index` and `qbridge search`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::{Shard, VisionProducts};

/// `qbridge index`
#[derive(Debug, Args)]
#[command(
    after_help = "INPUT is what `qbridge caption` takes: a picture, a directory (with those below it), a pattern in quotes, a
tar shard, a Parquet file with a column of pictures, an http(s) URL at a public address, or - for a list of these
on standard input, one a line.

Features are kept in FILE.partial as they come, and become FILE in the end, at once. A picture that cannot be
read is told on standard error, the others go on, and the exit code is 1. Ctrl-C finishes what is in flight (exit
code 130); --add goes on with it. An index belongs to the bundle that made it: no other adds to it or searches it.

Examples:
  qbridge index blip2-itm photos/ --out photos.index
  qbridge index blip2-itm photos/ --out photos.index --add
  qbridge index blip2-itm cat.png dog.png --out pets.index --quiet --json
  find photos/ -name '*.jpg' -print0 | qbridge index blip2-itm - --null --out found.index
  qbridge index blip2-itm 'shards/*.tar' --shard 3/8 --out part-3.index"
)]
pub struct IndexArgs {
    /// Bundle directory with heads that compare pictures and texts
    pub bundle: PathBuf,
    /// What to index
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<OsString>,

    /// Entries of the list on standard input end with NUL instead of a line break
    #[arg(short = '0', long, help_heading = "Input")]
    pub null: bool,
    /// Column of Parquet files that holds the pictures [default: image, or the only one that can]
    #[arg(long, value_name = "NAME", help_heading = "Input")]
    pub image_column: Option<String>,
    /// Index the i-th of n parts, from 1/n to n/n, so that n machines share the work
    #[arg(long, value_name = "I/N", value_parser = Shard::parse, help_heading = "Input")]
    pub shard: Option<Shard>,

    /// File to write
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: PathBuf,
    /// Add to an index, whether it is finished or a run was stopped: skip what is in it by name
    #[arg(
        long,
        visible_alias = "resume",
        conflicts_with = "overwrite",
        help_heading = "Output"
    )]
    pub add: bool,
    /// Replace an index that is there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// No progress bar and no summary
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print a summary in JSON at the end
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}

/// `qbridge search`
#[derive(Debug, Args)]
#[command(
    after_help = "similarity is the largest cosine between one of a picture's features and the text's (ITC), as `qbridge match`
tells it; of --image, the mean over its features of the largest cosine each, which is 1 for the same picture.
--rerank reads the first K pictures again and puts them in the order of the matching head's probability (ITM):
slower and sharper. They are looked for where they were indexed, so run it in the same directory.

Examples:
  qbridge search photos.index \"a cat on a sofa\"
  qbridge search photos.index \"a cat\" --top 3 --rerank 8 --json | jq -r .image
  qbridge search photos.index --image cat.png --json
  qbridge search photos.index - --bundle blip2-itm < captions.txt"
)]
pub struct SearchArgs {
    /// Index file
    pub index: PathBuf,
    /// What to search for, or - for one a line on standard input
    #[arg(value_name = "TEXT", required_unless_present = "images")]
    pub texts: Vec<String>,
    /// Search for pictures like this one; may be repeated
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
    /// Pictures that are told, best first
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub top: u32,
    /// Read the first K again, and put them in the order of the matching head
    #[arg(
        long,
        value_name = "K",
        conflicts_with = "images",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub rerank: Option<u32>,
    /// Look at every picture, instead of the graph
    #[arg(long)]
    pub exact: bool,
    /// Bundle that made the index [default: where it was then]
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Print {"text", "image", "similarity", "probability"} for each picture
    #[arg(long)]
    pub json: bool,
    /// How ViT and Q-Former multiply on a CPU
    #[arg(long, value_enum, default_value_t = VisionProducts::Auto, env = "QBRIDGE_VISION")]
    pub vision: VisionProducts,
}
