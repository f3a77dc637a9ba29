//! What was measured: a table for people, an object for programs.

use std::io::Write;

use bridge::bundle::Manifest;
use bridge::engine::CacheType;
use bridge::model::Model;
use serde::{Serialize, Serializer};

use crate::args::BenchArgs;
use crate::machine::Machine;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was measured.
    pub subject: Subject,
    /// In the order in which a request passes them.
    pub stages: Vec<Stage>,
    /// Where.
    pub machine: Machine,
}

/// A bundle, and how it was run.
#[derive(Debug, Serialize)]
pub struct Subject {
    /// Name of the bundle.
    pub bundle: String,
    /// Architecture and type of the language model, such as `llama Q4_1`, where there is one.
    pub language_model: Option<String>,
    /// Side of the ViT's input, in pixels.
    pub image_size: usize,
    /// Bytes of the picture file.
    pub picture_bytes: usize,
    /// How ViT and Q-Former multiplied, as the flag says.
    pub vision: String,
    /// How the language model was run, where there is one.
    #[serde(flatten)]
    pub engine: Option<Engine>,
}

/// How a language model was run.
#[derive(Debug, Serialize)]
pub struct Engine {
    /// Type of the KV cache.
    pub cache_type: CacheType,
    /// Threads of the language model.
    pub threads: Option<usize>,
    /// Rows of context for each sequence.
    pub n_ctx: usize,
    /// Most rows of one step, and those that are computed at once.
    pub n_batch: usize,
    /// See `n_batch`.
    pub n_ubatch: usize,
}

impl Subject {
    /// What `model` is.
    pub fn of(model: &Model, args: &BenchArgs, picture_bytes: usize) -> Subject {
        let engine = model.engine().options();
        let llm = model.language_model().info();
        Subject {
            language_model: Some(format!("{} {}", llm.architecture, llm.file_type_name())),
            engine: Some(Engine {
                cache_type: engine.cache_type,
                threads: engine.threads,
                n_ctx: engine.n_ctx,
                n_batch: engine.n_batch,
                n_ubatch: engine.n_ubatch,
            }),
            ..Subject::comparing(model.manifest(), args, picture_bytes)
        }
    }

    /// A bundle without a language model.
    pub fn comparing(manifest: &Manifest, args: &BenchArgs, picture_bytes: usize) -> Subject {
        Subject {
            bundle: manifest.name.clone(),
            language_model: None,
            image_size: manifest.vision.image_size,
            picture_bytes,
            vision: args.engine.vision.to_string(),
            engine: None,
        }
    }
}

/// Something that was run several times.
#[derive(Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Pictures, tokens or texts of one run.
    pub items: usize,
    /// Which of the three.
    pub unit: &'static str,
    /// What the runs took.
    pub seconds: Seconds,
    /// Items, by the median run.
    pub per_second: f64,
}

impl Stage {
    /// A stage of so many pictures a run.
    pub fn of_pictures(name: impl Into<String>, items: usize, seconds: Vec<f64>) -> Stage {
        Stage::new(name.into(), items, "pictures", seconds)
    }

    /// A stage of so many rows or tokens a run.
    pub fn of_tokens(name: impl Into<String>, items: usize, seconds: Vec<f64>) -> Stage {
        Stage::new(name.into(), items, "tokens", seconds)
    }

    /// The same of texts.
    pub fn of_texts(self) -> Stage {
        let unit = "texts";
        Stage { unit, ..self }
    }

    fn new(name: String, items: usize, unit: &'static str, seconds: Vec<f64>) -> Stage {
        let seconds = Seconds::of(seconds);
        Stage {
            name,
            items,
            unit,
            per_second: items as f64 / seconds.median.max(f64::MIN_POSITIVE),
            seconds,
        }
    }
}

/// Seconds of several runs.
#[derive(Debug, Serialize)]
pub struct Seconds {
    /// Of an even number the mean of the two in the middle.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
    /// Each, in its order.
    #[serde(serialize_with = "rounded")]
    pub runs: Vec<f64>,
}

/// Nanoseconds are enough.
fn rounded<S: Serializer>(seconds: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(seconds.iter().map(|seconds| (seconds * 1e9).round() / 1e9))
}

impl Seconds {
    /// Of at least one run.
    pub fn of(runs: Vec<f64>) -> Seconds {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        let n = sorted.len();
        Seconds {
            median: f64::midpoint(at(n.saturating_sub(1) / 2), at(n / 2)),
            min: at(0),
            max: at(n.saturating_sub(1)),
            runs,
        }
    }
}

impl Report {
    /// Prints the table.
    pub fn print(&self) -> std::io::Result<()> {
        let (subject, machine) = (&self.subject, &self.machine);
        let mut out = std::io::stdout().lock();
        write!(out, "{}: {} px", subject.bundle, subject.image_size)?;
        if let Some(language_model) = &subject.language_model {
            write!(out, ", {language_model}")?;
        }
        write!(out, ", vision {}", subject.vision)?;
        if let Some(engine) = &subject.engine {
            write!(out, ", {} threads", engine.threads.unwrap_or(1))?;
        }
        writeln!(out)?;
        writeln!(
            out,
            "{}, {} cores, {}, qbridge {}",
            machine.cpu, machine.cores, machine.platform, machine.version
        )?;
        writeln!(
            out,
            "\n{:<22} {:>10} {:>10} {:>10} {:>10}",
            "stage", "median ms", "fastest", "slowest", "a second"
        )?;
        for stage in &self.stages {
            let Seconds {
                median, min, max, ..
            } = stage.seconds;
            writeln!(
                out,
                "{:<22} {:>10.2} {:>10.2} {:>10.2} {:>10.1} {}",
                stage.name,
                1000.0 * median,
                1000.0 * min,
                1000.0 * max,
                stage.per_second,
                stage.unit
            )?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let seconds = Seconds::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((seconds.median, seconds.min, seconds.max), (2.5, 1.0, 10.0));
        assert_eq!(seconds.runs, [3.0, 1.0, 2.0, 10.0]);
        assert_eq!(Seconds::of(vec![3.0, 1.0, 2.0]).median, 2.0);
        let stage = Stage::of_tokens("prefill", 256, vec![0.5]);
        assert_eq!(stage.per_second, 512.0);
    }
}
