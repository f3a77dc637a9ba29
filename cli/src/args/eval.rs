//! `qbridge eval`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eval::Task;
use eval::preset::Preset;

use super::{EngineArgs, GenerationArgs, Shard, parse_choice};

/// `qbridge eval`
#[derive(Debug, Args)]
#[command(
    after_help = "DATA holds the files as the benchmark's authors publish them, such as
v2_OpenEnded_mscoco_val2014_questions.json; docs/eval.md names them all, and where pictures are looked for.

Scores are those of the official scorers, each with the interval that holds 95 % of what other samples of the
questions would give. With --out, answers are kept as JSON lines while they come, and --resume goes on with
them. A picture that cannot be read is a row with its error there, counts in no score, and makes the exit code
1 at the end. Ctrl-C finishes what is in flight (exit code 130); a second one stops at once.

Examples:
  qbridge eval blip2-opt --task vqav2 --data vqav2/ --images coco/ --preset blip2 --out answers.jsonl
  qbridge eval blip2-opt --task vqav2 --data vqav2/ --images coco/ --preset blip2 --out answers.jsonl --resume
  qbridge eval demo --task pope --data pope/ --split popular --images coco/ --choices yes,no --json
  qbridge eval demo --task coco --data coco/ --prompt \"what is this?\" --limit 500
  qbridge eval blip2-opt --task gqa --data gqa/ --preset blip2 --shard 3/8 --out answers-3.jsonl --quiet
  cat answers-*.jsonl > answers.jsonl && qbridge eval --task gqa --data gqa/ --answers answers.jsonl
  qbridge eval blip2-itm --task coco-retrieval --data coco/ --preset blip2 --out scores.jsonl --resume
  qbridge eval blip2-itm --task flickr30k --data flickr30k/ --rerank 0 --json
  qbridge eval --task okvqa --data okvqa/ --answers answers.json --submission result.json"
)]
pub struct EvalArgs {
    /// Bundle directory
    #[arg(required_unless_present = "answers", conflicts_with = "answers")]
    pub bundle: Option<PathBuf>,

    /// The benchmark
    #[arg(long, value_parser = tasks(), help_heading = "Benchmark")]
    pub task: Task,
    /// Directory with its published files
    #[arg(
        long,
        value_name = "DATA",
        required_unless_present = "questions",
        help_heading = "Benchmark"
    )]
    pub data: Option<PathBuf>,
    /// Which of its splits [default: the first one that is in DATA]
    #[arg(long, conflicts_with = "questions", help_heading = "Benchmark")]
    pub split: Option<String>,
    /// File with the questions, or captions, if it is called otherwise
    #[arg(long, value_name = "FILE", help_heading = "Benchmark")]
    pub questions: Option<PathBuf>,
    /// File with people's answers, of VQAv2 and OK-VQA
    #[arg(
        long,
        value_name = "FILE",
        requires = "questions",
        help_heading = "Benchmark"
    )]
    pub annotations: Option<PathBuf>,
    /// Directory with the pictures, or with the folder that they were published in [default: DATA]
    #[arg(long, value_name = "DIR", help_heading = "Benchmark")]
    pub images: Option<PathBuf>,
    /// Only the first N questions
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Benchmark"
    )]
    pub limit: Option<u32>,
    /// Ask the i-th of n parts, from 1/n to n/n, so that n machines share the work
    #[arg(long, value_name = "I/N", value_parser = Shard::parse, help_heading = "Benchmark")]
    pub shard: Option<Shard>,
    /// Score these answers instead of a bundle's: JSON lines that --out wrote, or a benchmark's result file
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["out", "resume", "preset", "prompt", "choices"],
        help_heading = "Benchmark"
    )]
    pub answers: Option<PathBuf>,

    /// Ask as a paper did [default: as `qbridge ask` does, with the bundle's settings]
    #[arg(long, value_parser = presets(), help_heading = "Prompt")]
    pub preset: Option<Preset>,
    /// In retrieval, how many of the nearest the matching head puts in order; 0 for none [default: 128]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(..=100_000), help_heading = "Prompt")]
    pub rerank: Option<u32>,
    /// What to ask, the question in the place of {}
    #[arg(long, value_name = "TEXT", help_heading = "Prompt")]
    pub prompt: Option<String>,
    /// Answer with the likeliest of these
    #[arg(
        long,
        value_name = "A,B,...",
        value_delimiter = ',',
        value_parser = parse_choice,
        help_heading = "Prompt"
    )]
    pub choices: Vec<String>,

    /// File for the answers, as JSON lines
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Go on with the answers of a run that was stopped
    #[arg(
        long,
        requires = "out",
        conflicts_with = "overwrite",
        help_heading = "Output"
    )]
    pub resume: bool,
    /// Replace files that are there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// File for the answers in the form that the benchmark's server or scorer takes, written at the end
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub submission: Option<PathBuf>,
    /// No progress bar and no summary
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print scores, settings and what the run took as one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten, next_help_heading = "Generation")]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,

    /// Questions that are answered together
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

/// Reads the name of a task.
fn tasks() -> impl TypedValueParser<Value = Task> {
    let value = |task: &Task| PossibleValue::new(task.name()).help(task.title());
    named(Task::ALL.iter().map(value), Task::named)
}

/// Reads the name of a preset.
fn presets() -> impl TypedValueParser<Value = Preset> {
    let value = |preset: &Preset| PossibleValue::new(preset.name()).help(preset.source());
    named(Preset::ALL.iter().map(value), Preset::named)
}

fn named<T: Clone + Send + Sync + 'static>(
    values: impl Iterator<Item = PossibleValue>,
    read: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    let values: Vec<PossibleValue> = values.collect();
    PossibleValuesParser::new(values).try_map(move |name| read(&name).ok_or("no such name"))
}
