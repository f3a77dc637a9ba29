//! `qbridge eval`: a benchmark's questions to a bundle, and its scores.
//!
//! - `settings`: how questions are asked: command line, preset and bundle
//! - `asker`: asks the model, many questions at once, and makes rows of its answers
//! - `journal`: writes the rows, and knows those of an earlier run
//! - `rows`: what a row is
//! - `results`: what is printed in the end
//! - `retrieval`: finds pictures by texts and texts by pictures, where nothing is asked
//!
//! Files, prompts and scores of benchmarks are the crate `eval`'s.

mod asker;
mod journal;
mod results;
mod retrieval;
mod rows;
mod settings;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bridge::bundle::Bundle;
use eval::{Answers, Dataset, Files};
use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;

use super::INTERRUPTED;
use crate::args::{EvalArgs, check_choices};
use crate::batch::{Progress, how_to_go_on, set_total, watch_signals};
use crate::progress::spinner;
use asker::Asker;
use journal::Journal;
use results::{Results, Run};
use settings::Settings;

/// What is counted.
const QUESTIONS: &str = "questions";

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    check_choices("eval", &args.choices).unwrap_or_else(|error| error.exit());
    if args.task.is_retrieval() {
        retrieval::check(args)?;
    } else if args.rerank.is_some() {
        bail!(
            "--rerank is for retrieval: {} asks questions",
            args.task.name()
        );
    }
    check_submission(args)?;
    let files = files(args)?;
    let dataset = read(args, &files)?;
    match (&args.bundle, &args.answers) {
        (_, Some(path)) => {
            let answers = Answers::read(path)?;
            if answers.are_in_order() && args.shard.is_some() {
                bail!(
                    "{}: these answers have no ids, so that their order is that of all questions: leave out --shard",
                    path.display()
                );
            }
            Results::new(args, dataset, &answers, path)?.print(args)
        }
        (Some(bundle), None) if args.task.is_retrieval() => {
            retrieval::run(args, &files, dataset, bundle)
        }
        (Some(bundle), None) => ask_bundle(args, &files, dataset, bundle),
        (None, None) => bail!("name a bundle, or --answers FILE"),
    }
}

/// Refuses to replace a file unasked, before questions are answered in vain. A run that is gone on with may have written it.
fn check_submission(args: &EvalArgs) -> Result<()> {
    match &args.submission {
        Some(path) if path.exists() && !args.overwrite && !args.resume => {
            bail!("{} exists already: --overwrite replaces it", path.display())
        }
        _ => Ok(()),
    }
}

/// The files that the command line names.
fn files(args: &EvalArgs) -> Result<Files> {
    if let Some(questions) = &args.questions {
        return Ok(Files {
            questions: questions.clone(),
            annotations: args.annotations.clone(),
        });
    }
    let data = args.data.as_ref().context("--data DATA is needed")?;
    Ok(args.task.find(data, args.split.as_deref())?)
}

/// The questions of this run.
fn read(args: &EvalArgs, files: &Files) -> Result<Dataset> {
    let spinner = spinner(format!("reading {}", files.questions.display()));
    let limit = args.limit.map(|n| n as usize);
    let mut dataset = Dataset::read(args.task, files, limit)?;
    if let Some(shard) = args.shard {
        // All questions about a picture are in one part, where it goes through the ViT once.
        let records = &mut dataset.records;
        records.retain(|record| shard.holds(&record.picture.0));
    }
    spinner.finish_and_clear();
    Ok(dataset)
}

fn ask_bundle(args: &EvalArgs, files: &Files, dataset: Dataset, dir: &Path) -> Result<ExitCode> {
    let bundle = Bundle::open(dir)?;
    let settings = Settings::new(args, files, &bundle)?;
    let images = asker::images(args, &dataset)?;
    let mut journal = Journal::open(args, &settings)?;
    let asker = Asker::open(args, &bundle, settings, &dataset, images)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = runtime.block_on(ask_all(args, &asker, &mut journal, &dataset))?;
    if !args.quiet {
        eprintln!("{run}");
    }
    journal.finish()?;
    if run.interrupted {
        eprintln!("{}", how_to_go_on(args.out.is_some(), args.resume));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let out = args.out.as_deref().unwrap_or(Path::new("the answers"));
    let results = Results::new(args, dataset, &journal.answers, out)?;
    let results = results.of_run(asker.settings().clone(), run);
    results.print(args)
}

async fn ask_all(
    args: &EvalArgs,
    asker: &Asker,
    journal: &mut Journal,
    dataset: &Dataset,
) -> Result<Run> {
    let mut progress = Progress::new(
        QUESTIONS,
        journal.earlier,
        journal.earlier_errors,
        args.quiet,
    );
    let records = dataset.records.iter();
    let left: Vec<_> = records
        .filter(|record| !journal.answers.has(&record.id))
        .collect();
    if let Some(bar) = progress.bar() {
        set_total(&bar, QUESTIONS, dataset.records.len() as u64);
    }
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let mut rows = stream::iter(left)
        .take_until(&mut stopped)
        .map(|record| asker.ask(record))
        .buffered(asker.in_flight());
    while let Some(row) = rows.next().await {
        let row = row?;
        let tokens = row.usage.map_or(0, |usage| usage.completion_tokens);
        progress.count(row.error.is_some(), tokens);
        journal.write(row)?;
    }
    drop(rows);
    progress.clear();
    Ok(Run::new(progress.tally(), stopped.is_terminated()))
}
