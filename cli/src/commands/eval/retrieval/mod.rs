//! Retrieval: pictures found by texts and texts by pictures. The similarity (ITC) puts all in order, then the matching
//! head (ITM) the first of each, as LAVIS's `compute_sim_matrix` does: by the sum of both.
//!
//! - `journal`: features and scores as they come, and those of a run that was stopped

mod journal;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use eval::preset::Preset;
use eval::retrieval::{RERANKED, Ranking, Texts, first, score};
use eval::{Dataset, Files, Record, Report};
use futures_util::stream::{self, StreamExt};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;
use tokio::sync::oneshot;

use super::super::{INTERRUPTED, bundle_hash, print_json};
use super::asker;
use super::results::SEED;
use super::settings::named;
use crate::args::EvalArgs;
use crate::batch::{Failure, Progress, how_to_go_on, read_image, set_total, tell, watch_signals};
use crate::heads::{Heads, Rows, Seen, blocking, similarities};
use crate::progress::spinner;
use journal::{Journal, Settings};

/// Pictures that are read and computed at once.
const IN_FLIGHT: usize = 4;

/// What is counted.
const PICTURES: &str = "pictures";

/// Refuses flags that say nothing here.
///
/// # Errors
/// One of them is given.
pub fn check(args: &EvalArgs) -> Result<()> {
    let generation = &args.generation;
    let unknown = [
        ("--prompt", args.prompt.is_some()),
        ("--choices", !args.choices.is_empty()),
        ("--answers", args.answers.is_some()),
        ("--submission", args.submission.is_some()),
        ("--max-tokens", generation.max_tokens.is_some()),
        ("--num-beams", generation.num_beams.is_some()),
        ("--temperature", generation.temperature.is_some()),
    ];
    if let Some((flag, _)) = unknown.iter().find(|(_, is_given)| *is_given) {
        bail!(
            "{} finds pictures by texts and asks nothing: leave out {flag}",
            args.task.name()
        );
    }
    if args.shard.is_some() {
        bail!("--shard: each picture is compared with all the others, so there are no parts");
    }
    if args.preset == Some(Preset::InstructBlip) {
        bail!("--preset instructblip: that paper measures no retrieval");
    }
    Ok(())
}

/// Runs the benchmark.
pub fn run(args: &EvalArgs, files: &Files, dataset: Dataset, bundle: &Path) -> Result<ExitCode> {
    let images = asker::images(args, &dataset)?.to_owned();
    let heads = Arc::new(Heads::open(bundle, args.engine.vision)?);
    heads.shape()?;
    if args.rerank != Some(0) {
        heads.must_match("the order of the nearest (--rerank 0 leaves it)")?;
    }
    let file_name = files.questions.file_name().unwrap_or_default();
    let settings = Settings {
        task: args.task,
        questions: file_name.to_string_lossy().into_owned(),
        bundle: heads.manifest().name.clone(),
        bundle_hash: bundle_hash(heads.manifest()),
        preset: args.preset.map(|preset| preset.name().to_owned()),
        rerank: args.rerank.map_or(RERANKED, |k| k as usize),
        vision: named(&args.engine.vision),
    };
    let journal = Journal::open(args, &settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut benchmark = Benchmark {
        heads,
        images,
        journal,
        is_quiet: args.quiet,
        run: Run::default(),
    };
    let as_lavis = args.preset.is_some();
    let report = runtime.block_on(benchmark.report(dataset, settings.rerank, as_lavis))?;
    benchmark.journal.finish()?;
    let run = benchmark.run;
    if !args.quiet {
        eprintln!("{run}");
    }
    let Some((report, errors)) = report else {
        eprintln!("{}", how_to_go_on(args.out.is_some(), args.resume));
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let results = Results {
        report,
        errors,
        settings,
        run,
    };
    match args.json {
        true => print_json(&results)?,
        false => print_text(&results)?,
    }
    Ok(match errors {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// The work.
struct Benchmark {
    heads: Arc<Heads>,
    images: PathBuf,
    journal: Journal,
    is_quiet: bool,
    run: Run,
}

impl Benchmark {
    /// Scores, and how many pictures failed; none where the run was stopped.
    async fn report(
        &mut self,
        mut dataset: Dataset,
        k: usize,
        as_lavis: bool,
    ) -> Result<Option<(Report, usize)>> {
        if !self.see_all(&dataset.records).await? {
            return Ok(None);
        }
        let asked = dataset.records.len();
        let journal = &self.journal;
        dataset
            .records
            .retain(|record| journal.features(&record.id).is_some());
        let errors = asked - dataset.records.len();
        if dataset.records.is_empty() {
            bail!("not one of the pictures can be read");
        }
        let texts = Texts::of(&dataset, as_lavis);
        let Some(compared) = Compared::new(&self.heads, &self.journal, &dataset, &texts, k)? else {
            bail!("features of a picture are missing");
        };
        if k > 0 && !self.match_all(&dataset.records, &texts, &compared).await? {
            return Ok(None);
        }
        let of_pictures = |picture: usize| {
            let scored = compared.scored_texts(picture, self.journal.logits(&dataset, picture));
            Ranking {
                similarity: compared.of_picture(picture),
                scored: &scored,
            }
            .place(|text| texts.picture.get(text) == Some(&picture))
        };
        let n_texts = texts.texts.len();
        let of_texts = |text: usize| {
            let logit = |picture| self.journal.logit(&dataset, picture, text);
            let scored = compared.scored_pictures(text, logit);
            Ranking {
                similarity: &compared.of_text(text),
                scored: &scored,
            }
            .place(|picture| texts.picture.get(text) == Some(&picture))
        };
        let last = usize::MAX;
        let pictures: Vec<usize> = (0..dataset.records.len())
            .map(|picture| of_pictures(picture).unwrap_or(last))
            .collect();
        let by_text: Vec<usize> = (0..n_texts)
            .map(|text| of_texts(text).unwrap_or(last))
            .collect();
        let report = score(&dataset, &pictures, &by_text, &texts.picture, SEED);
        Ok(Some((report, errors)))
    }

    /// Computes the features of all pictures; whether it came to the end.
    async fn see_all(&mut self, records: &[Record]) -> Result<bool> {
        let journal = &self.journal;
        let left: Vec<&Record> = (records.iter())
            .filter(|record| !journal.has_seen(&record.id))
            .collect();
        let (heads, images) = (self.heads.clone(), self.images.clone());
        let features = |record: Record| {
            let (heads, images) = (heads.clone(), images.clone());
            async move {
                let seen = see(&heads, &images, &record).await?;
                blocking(move || Ok(heads.picture_features(&seen)?)).await
            }
        };
        let mut progress = self.progress(records.len(), left.len());
        let (stop, mut stopped) = oneshot::channel();
        let signals = tokio::spawn(watch_signals(stop));
        let mut found = stream::iter(left)
            .take_until(&mut stopped)
            .map(|record| {
                let features = features(record.clone());
                async move { (record, features.await) }
            })
            .buffered(IN_FLIGHT);
        while let Some((record, features)) = found.next().await {
            let features = match features {
                Ok(features) => Ok(features),
                Err(Failure::Picture(error)) => {
                    progress.suspend(|| tell(&record.id.key(), &error));
                    Err(error)
                }
                Err(Failure::Run(error)) => return Err(error),
            };
            progress.count(features.is_err(), 0);
            self.journal.write_features(&record.id, features)?;
        }
        drop(found);
        signals.abort();
        let is_all = !stopped.is_terminated();
        progress.clear();
        self.run.add(&progress, 0);
        Ok(is_all)
    }

    /// Asks the matching head about all pairs that are near; whether it came to the end.
    async fn match_all(
        &mut self,
        records: &[Record],
        texts: &Texts,
        compared: &Compared,
    ) -> Result<bool> {
        let wanted = compared.pairs();
        let journal = &self.journal;
        let left: Vec<(&Record, &BTreeSet<usize>)> = (records.iter().zip(&wanted))
            .filter(|(record, wanted)| !journal.has_matched(&record.id, wanted))
            .collect();
        let (heads, images) = (self.heads.clone(), self.images.clone());
        let logits = |record: Record, wanted: &BTreeSet<usize>| {
            let (heads, images) = (heads.clone(), images.clone());
            let of = |&text: &usize| texts.texts.get(text).cloned().unwrap_or_default();
            let texts: Vec<String> = wanted.iter().map(of).collect();
            async move {
                let seen = see(&heads, &images, &record).await?;
                let read = move || {
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    Ok(heads.match_logits(&seen, &texts)?)
                };
                blocking(read).await
            }
        };
        let mut progress = self.progress(records.len(), left.len());
        let (stop, mut stopped) = oneshot::channel();
        let signals = tokio::spawn(watch_signals(stop));
        let mut found = stream::iter(left)
            .take_until(&mut stopped)
            .map(|(record, wanted)| {
                let logits = logits(record.clone(), wanted);
                async move { (record, wanted, logits.await) }
            })
            .buffered(IN_FLIGHT);
        let mut n_pairs = 0;
        while let Some((record, wanted, logits)) = found.next().await {
            let logits = match logits {
                Ok(logits) => logits,
                // It was read a moment ago.
                Err(Failure::Picture(error)) => bail!("{}: {error}", record.id),
                Err(Failure::Run(error)) => return Err(error),
            };
            n_pairs += logits.len() as u64;
            progress.count(false, 0);
            (self.journal).write_logits(&record.id, wanted.iter().copied().zip(logits))?;
        }
        drop(found);
        signals.abort();
        let is_all = !stopped.is_terminated();
        progress.clear();
        self.run.add(&progress, n_pairs);
        Ok(is_all)
    }

    fn progress(&self, all: usize, left: usize) -> Progress {
        let progress = Progress::new(PICTURES, (all - left) as u64, 0, self.is_quiet);
        if let Some(bar) = progress.bar() {
            set_total(&bar, PICTURES, all as u64);
        }
        progress
    }
}

async fn see(heads: &Arc<Heads>, images: &Path, record: &Record) -> Result<Seen, Failure> {
    let path = record.find_picture(images);
    let path = path.map_err(|error| Failure::Picture(error.to_string()))?;
    let file = read_image(path, |_| Ok(())).await?;
    let heads = heads.clone();
    blocking(move || Ok(heads.see(&file)?)).await
}

/// How near all pictures and texts are.
struct Compared {
    /// `[pictures, texts]`
    similarities: Vec<f32>,
    n_texts: usize,
    /// Of each picture, the nearest texts.
    near_texts: Vec<Vec<usize>>,
    /// Of each text, the nearest pictures.
    near_pictures: Vec<Vec<usize>>,
}

impl Compared {
    fn new(
        heads: &Heads,
        journal: &Journal,
        dataset: &Dataset,
        texts: &Texts,
        k: usize,
    ) -> Result<Option<Compared>> {
        let spinner = spinner("comparing all texts with all pictures".to_owned());
        let of = |record: &Record| journal.features(&record.id);
        let pictures: Option<Vec<&Rows>> = dataset.records.iter().map(of).collect();
        let Some(pictures) = pictures else {
            return Ok(None);
        };
        let words: Vec<&str> = texts.texts.iter().map(String::as_str).collect();
        let similarities = similarities(&pictures, &heads.text_features(&words)?)?;
        let mut compared = Compared {
            similarities,
            n_texts: words.len(),
            near_texts: Vec::new(),
            near_pictures: Vec::new(),
        };
        let of_picture = |picture| first(compared.of_picture(picture), k);
        let of_text = |text| first(&compared.of_text(text), k);
        let near_texts = (0..pictures.len()).map(of_picture).collect();
        let near_pictures = (0..words.len()).map(of_text).collect();
        compared.near_texts = near_texts;
        compared.near_pictures = near_pictures;
        spinner.finish_and_clear();
        Ok(Some(compared))
    }

    /// Of one picture, how near each text is.
    fn of_picture(&self, picture: usize) -> &[f32] {
        let start = picture * self.n_texts;
        &self.similarities[start..start + self.n_texts]
    }

    /// Of one text, how near each picture is.
    fn of_text(&self, text: usize) -> Vec<f32> {
        let column = self.similarities.iter().skip(text);
        column.step_by(self.n_texts).copied().collect()
    }

    /// Of each picture, the texts that are to be read beside it: its nearest, and those that it is nearest to.
    fn pairs(&self) -> Vec<BTreeSet<usize>> {
        let near = self.near_texts.iter();
        let mut pairs: Vec<BTreeSet<usize>> = near.map(|n| n.iter().copied().collect()).collect();
        for (text, pictures) in self.near_pictures.iter().enumerate() {
            for &picture in pictures {
                if let Some(pairs) = pairs.get_mut(picture) {
                    pairs.insert(text);
                }
            }
        }
        pairs
    }

    /// The nearest texts of a picture, with the sum of both scores.
    fn scored_texts(&self, picture: usize, logits: &[(usize, f32)]) -> Vec<(usize, f32)> {
        let similarity = self.of_picture(picture);
        let logit = |text: usize| {
            let at = logits.binary_search_by_key(&text, |(text, _)| *text).ok()?;
            logits.get(at).map(|(_, logit)| *logit)
        };
        let near = self.near_texts[picture].iter();
        near.filter_map(|&text| Some((text, similarity[text] + logit(text)?)))
            .collect()
    }

    /// The nearest pictures of a text, with the sum of both scores.
    fn scored_pictures(
        &self,
        text: usize,
        logit: impl Fn(usize) -> Option<f32>,
    ) -> Vec<(usize, f32)> {
        let near = self.near_pictures[text].iter();
        near.filter_map(|&picture| {
            let similarity = self.of_picture(picture)[text];
            Some((picture, similarity + logit(picture)?))
        })
        .collect()
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Results {
    #[serde(flatten)]
    report: Report,
    /// Pictures that could not be read, and are in no score.
    errors: usize,
    settings: Settings,
    run: Run,
}

fn print_text(results: &Results) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", results.report)?;
    if results.errors > 0 {
        let n = HumanCount(results.errors as u64);
        writeln!(out, "{n} more failed and are in no score")?;
    }
    Ok(out.flush()?)
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Run {
    /// Pictures whose features were computed, and again those that texts were read beside.
    pictures: u64,
    /// Pairs that the matching head read.
    pairs: u64,
    /// Without those that loading the bundle and reading the texts took.
    seconds: f64,
}

impl Run {
    fn add(&mut self, progress: &Progress, n_pairs: u64) {
        let tally = progress.tally();
        self.pictures += tally.rows;
        self.pairs += n_pairs;
        self.seconds += tally.seconds;
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pictures computed, {} pairs matched in {}",
            HumanCount(self.pictures),
            HumanCount(self.pairs),
            HumanDuration(Duration::from_secs_f64(self.seconds))
        )
    }
}
