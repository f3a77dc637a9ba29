//! `qbridge bootstrap`: BLIP's captioning and filtering. One head writes captions, another keeps those texts, the
//! pictures' own and the new ones, that fit.
//!
//! - `rows`: what is written of a picture
//! - `writer`: what writes captions

mod rows;
mod writer;

use std::fs::File;
use std::io::{BufReader, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use futures_util::stream::{self, StreamExt};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{INTERRUPTED, print_json};
use crate::args::BootstrapArgs;
use crate::batch::{
    Done, Existing, Failure, Progress, RowFile, how_to_go_on, lines, watch_signals,
};
use crate::heads::{Heads, blocking, similarity};
use crate::inputs::{Item, Loader, feed};
use crate::tables::{Table, rounded};
use rows::{Row, Source, Text};
use writer::Writer;

/// How every line begins.
const BEGINNING: &str = "{\"image\":\"";

/// What is counted.
const PICTURES: &str = "pictures";

/// Runs the command.
pub fn run(args: &BootstrapArgs) -> Result<ExitCode> {
    let table = Table::new(&args.table)?;
    let (mut out, done) = open(args)?;
    let heads = Arc::new(Heads::open(&args.bundle, args.engine.vision)?);
    heads.must_match("the filter")?;
    let pipeline = Pipeline {
        writer: Writer::open(args, &heads)?,
        heads,
        loader: Loader::new()?,
        min_itm: args.min_itm,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = runtime.block_on(run_all(args, &table, &pipeline, &mut out, done));
    runtime.shutdown_background();
    let summary = run?;
    if let Some(out) = &out {
        out.sync()?;
    }
    if !args.quiet {
        eprintln!("{summary}");
    }
    if summary.interrupted {
        eprintln!("{}", how_to_go_on(args.out.is_some(), args.resume));
    }
    if args.json {
        print_json(&summary)?;
    }
    Ok(match (summary.interrupted, summary.errors) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

/// The file to write, and what an earlier run left in it.
fn open(args: &BootstrapArgs) -> Result<(Option<RowFile>, Done)> {
    let mut done = Done::default();
    let Some(path) = &args.out else {
        return Ok((None, done));
    };
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        bail!("{}: this is no file", path.display());
    }
    let existing = Existing::of(args.resume, args.overwrite);
    existing.check(path)?;
    let mut file = RowFile::open(path.clone())?;
    match existing {
        Existing::Resume => file.recover(|reader: BufReader<&File>| {
            let add = |row: Row| {
                done.add(&row.image, row.error.is_some());
                Ok(())
            };
            lines::recover(reader, "bootstrap", &[BEGINNING], add)
        })?,
        Existing::Refuse | Existing::Overwrite => file.clear()?,
    }
    Ok((Some(file), done))
}

async fn run_all(
    args: &BootstrapArgs,
    table: &Table,
    pipeline: &Pipeline,
    out: &mut Option<RowFile>,
    mut done: Done,
) -> Result<Summary> {
    let mut progress = Progress::new(PICTURES, done.count, done.errors, args.quiet);
    let is_new = move |name: &str| !done.take(name);
    let mut found = feed::find(table, args.shard, progress.bar(), PICTURES, is_new);
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let mut rows = stream::poll_fn(|context| found.items.poll_recv(context))
        .take_until(&mut stopped)
        .map(|item| pipeline.row(item))
        .buffered(usize::from(args.slots));
    let mut summary = Summary::default();
    while let Some(row) = rows.next().await {
        let row = row?;
        let line = lines::line(&row)?;
        match out {
            Some(out) => out.append(&line)?,
            None => progress.suspend(|| {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(&line).and_then(|()| stdout.flush())
            })?,
        }
        summary.count(&row);
        progress.count(row.error.is_some(), 0);
    }
    drop(rows);
    summary.interrupted = stopped.is_terminated();
    progress.clear();
    if !summary.interrupted && !found.finish() {
        bail!("reading the table failed: --resume goes on with the rows that were read");
    }
    let tally = progress.tally();
    Ok(Summary {
        pictures: tally.rows,
        errors: tally.errors + tally.earlier_errors,
        skipped: tally.skipped,
        seconds: tally.seconds,
        pictures_per_second: tally.rows_per_second,
        ..summary
    })
}

/// What a picture goes through.
struct Pipeline {
    heads: Arc<Heads>,
    writer: Writer,
    loader: Loader,
    min_itm: f32,
}

impl Pipeline {
    async fn row(&self, item: Item) -> Result<Row> {
        let name = item.name.clone();
        match self.texts(item).await {
            Ok(texts) => {
                let fits = |text: &Text| text.probability >= f64::from(self.min_itm);
                let (kept, dropped) = texts.into_iter().partition(fits);
                Ok(Row::read(name, kept, dropped))
            }
            Err(Failure::Picture(error)) => Ok(Row::failed(name, error)),
            Err(Failure::Run(error)) => Err(error),
        }
    }

    /// All texts of a picture, with their scores.
    async fn texts(&self, item: Item) -> Result<Vec<Text>, Failure> {
        let Item {
            picture, text: web, ..
        } = item;
        let file = self.loader.load(picture, |_| Ok(())).await?;
        let heads = self.heads.clone();
        let seen = blocking(move || Ok(heads.see(&file).map(|seen| (seen, file))?));
        let (seen, file) = seen.await?;
        let seen = Arc::new(seen);
        let synthetic = self.writer.caption(seen.clone(), file).await?;
        let web = web.filter(|text| !text.trim().is_empty());
        let mut texts: Vec<(String, Source)> =
            web.map(|text| (text, Source::Web)).into_iter().collect();
        // What it was called already is not found anew.
        let is_new = |caption: &String| texts.iter().all(|(text, _)| text.trim() != caption);
        let synthetic = synthetic.filter(is_new);
        texts.extend(synthetic.map(|text| (text, Source::Synthetic)));
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let heads = self.heads.clone();
        blocking(move || {
            let words: Vec<&str> = texts.iter().map(|(text, _)| text.as_str()).collect();
            let picture = heads.picture_features(&seen)?;
            let features = heads.text_features(&words)?;
            let probabilities = heads.probabilities(&seen, &words)?;
            let scores = features.iter().zip(probabilities);
            let texts = texts.iter().zip(scores);
            let scored = texts.map(|((text, source), (features, probability))| Text {
                text: text.clone(),
                source: *source,
                similarity: rounded(similarity(&picture, features)),
                probability: rounded(probability),
            });
            Ok(scored.collect())
        })
        .await
    }
}

/// What a run did.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Rows written.
    pictures: u64,
    web_kept: u64,
    web_dropped: u64,
    synthetic_kept: u64,
    synthetic_dropped: u64,
    /// Pictures that failed.
    errors: u64,
    /// Pictures that an earlier run had done.
    skipped: u64,
    /// Without those that loading the bundles took.
    seconds: f64,
    pictures_per_second: f64,
    /// Whether it was stopped before the end.
    interrupted: bool,
}

impl Summary {
    fn count(&mut self, row: &Row) {
        for (texts, web, synthetic) in [
            (&row.texts, &mut self.web_kept, &mut self.synthetic_kept),
            (
                &row.dropped,
                &mut self.web_dropped,
                &mut self.synthetic_dropped,
            ),
        ] {
            for text in texts {
                match text.source {
                    Source::Web => *web += 1,
                    Source::Synthetic => *synthetic += 1,
                }
            }
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pictures: {} of {} texts of their own kept, {} of {} new ones",
            HumanCount(self.pictures),
            HumanCount(self.web_kept),
            HumanCount(self.web_kept + self.web_dropped),
            HumanCount(self.synthetic_kept),
            HumanCount(self.synthetic_kept + self.synthetic_dropped),
        )?;
        for (n, what) in [(self.errors, "failed"), (self.skipped, "done before")] {
            if n > 0 {
                write!(f, ", {} {what}", HumanCount(n))?;
            }
        }
        write!(
            f,
            " in {}: {:.1} pictures/s",
            HumanDuration(std::time::Duration::from_secs_f64(self.seconds)),
            self.pictures_per_second
        )
    }
}
