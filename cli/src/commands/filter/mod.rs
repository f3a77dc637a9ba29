//! `qbridge filter`: the rows of a table whose texts fit their pictures.
//!
//! - `journal`: scores as they come, and those of a run that was stopped

mod journal;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use futures_util::stream::{self, StreamExt};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{INTERRUPTED, bundle_hash, print_json};
use crate::args::FilterArgs;
use crate::batch::{Existing, Failure, Progress, Tally, how_to_go_on, tell, watch_signals};
use crate::heads::{Heads, blocking, similarity};
use crate::inputs::{Item, Loader, feed};
use crate::progress::spinner;
use crate::tables::{Scores, Table};
use journal::{Journal, Row, Settings};

/// Rows that are read and computed at once.
const IN_FLIGHT: usize = 4;

/// What is counted.
const ROWS: &str = "rows";

/// Which texts are kept, and what must be known of each.
#[derive(Debug, Clone, Copy)]
struct Rule {
    min_itm: Option<f32>,
    min_itc: Option<f32>,
    has_scores: bool,
}

/// Runs the command.
pub fn run(args: &FilterArgs) -> Result<ExitCode> {
    let table = Table::new(&args.table)?;
    let is_begun = args
        .out
        .as_ref()
        .is_some_and(|out| journal::path(out).exists());
    if let (Some(out), true, false) = (&args.out, args.resume, is_begun)
        && out.exists()
    {
        eprintln!("{} is finished", out.display());
        return Ok(ExitCode::SUCCESS);
    }
    // Where both are there, a run was stopped while it wrote what is kept.
    check_output(args, &table, args.overwrite || (args.resume && is_begun))?;
    let heads = Heads::open(&args.bundle, args.vision)?;
    if args.min_itm.is_some() || args.scores {
        heads.must_match("--min-itm or --scores")?;
    }
    if args.min_itc.is_some() || args.scores {
        heads.shape()?;
    }
    let rule = Rule {
        min_itm: args.min_itm,
        min_itc: args.min_itc,
        has_scores: args.scores,
    };
    let settings = settings(args, &heads, &table);
    let existing = Existing::of(args.resume, args.overwrite);
    let mut journal = Journal::open(args.out.as_deref(), existing, settings)?;
    let earlier = journal.tally();
    let progress = Progress::new(ROWS, earlier.rows, earlier.errors, args.quiet);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let scored = runtime.block_on(score_all(heads, &table, rule, &mut journal, progress));
    runtime.shutdown_background();
    let (tally, interrupted) = scored?;
    let rows = journal.rows();
    if !interrupted {
        write(args, &table, rule, rows)?;
    }
    let kept = rows.iter().filter(|row| rule.keeps(row)).count() as u64;
    let errors = tally.errors + tally.earlier_errors;
    let summary = Summary {
        rows: rows.len() as u64,
        kept,
        dropped: rows.len() as u64 - kept - errors,
        errors,
        skipped: tally.skipped,
        seconds: tally.seconds,
        rows_per_second: tally.rows_per_second,
        interrupted,
    };
    if !args.quiet {
        eprintln!("{summary}");
    }
    match interrupted {
        true => eprintln!("{}", how_to_go_on(args.out.is_some(), args.resume)),
        false => journal.remove()?,
    }
    if args.json {
        print_json(&summary)?;
    }
    Ok(match (interrupted, summary.errors) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

fn check_output(args: &FilterArgs, table: &Table, may_replace: bool) -> Result<()> {
    let outs = [args.out.as_deref(), args.dropped.as_deref()];
    for out in outs.into_iter().flatten() {
        if !may_replace && out.exists() {
            bail!("{} exists already: --overwrite replaces it", out.display());
        }
        let same = |a, b| matches!((std::path::absolute(a), std::path::absolute(b)), (Ok(a), Ok(b)) if a == b);
        if same(out, table.path()) {
            bail!(
                "{}: this is the table itself; name another file",
                out.display()
            );
        }
    }
    if args.out.is_none() && table.needs_file() {
        bail!("--out FILE is needed: a Parquet file is written from its end");
    }
    match args.scores {
        true => table.check_scores(),
        false => Ok(()),
    }
}

fn settings(args: &FilterArgs, heads: &Heads, table: &Table) -> Settings {
    let (image_column, text_column) = table.columns();
    let bytes = table.path().metadata().map_or(0, |m| m.len());
    let name = table.path().file_name().unwrap_or_default();
    Settings {
        bundle_hash: bundle_hash(heads.manifest()),
        table: name.to_string_lossy().into_owned(),
        table_bytes: bytes,
        image_column: image_column.map(str::to_owned),
        text_column: text_column.to_owned(),
        min_itm: args.min_itm,
        min_itc: args.min_itc,
        scores: args.scores,
    }
}

async fn score_all(
    heads: Heads,
    table: &Table,
    rule: Rule,
    journal: &mut Journal,
    mut progress: Progress,
) -> Result<(Tally, bool)> {
    let (heads, loader) = (Arc::new(heads), Loader::new()?);
    let mut left_out = journal.tally().rows;
    let is_new = move |_: &str| match left_out {
        0 => true,
        _ => {
            left_out -= 1;
            false
        }
    };
    let mut found = feed::find(table, None, progress.bar(), ROWS, is_new);
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let mut rows = stream::poll_fn(|context| found.items.poll_recv(context))
        .take_until(&mut stopped)
        .map(|item| score(&heads, &loader, rule, item))
        .buffered(IN_FLIGHT);
    while let Some(row) = rows.next().await {
        let row = row?;
        if let Some(error) = &row.error {
            progress.suspend(|| tell(&row.image, error));
        }
        progress.count(row.error.is_some(), 0);
        journal.write(row)?;
    }
    drop(rows);
    let interrupted = stopped.is_terminated();
    progress.clear();
    if !interrupted && !found.finish() {
        bail!("reading the table failed: --resume goes on with the rows that were read");
    }
    Ok((progress.tally(), interrupted))
}

async fn score(heads: &Arc<Heads>, loader: &Loader, rule: Rule, item: Item) -> Result<Row> {
    let Item {
        name,
        picture,
        text,
        ..
    } = item;
    let scores = async {
        let file = loader.load(picture, |_| Ok(())).await?;
        let Some(text) = text else {
            return Err(Failure::Picture("this row has no text".to_owned()));
        };
        let heads = heads.clone();
        blocking(move || Ok(rule.scores(&heads, &file, &text)?)).await
    };
    match scores.await {
        Ok(scores) => Ok(Row::scored(name, scores)),
        Err(Failure::Picture(error)) => Ok(Row::failed(name, error)),
        Err(Failure::Run(error)) => Err(error),
    }
}

impl Rule {
    /// What must be known of a row: the matching head, which is slow, is not asked where the other one says no.
    fn scores(self, heads: &Heads, file: &[u8], text: &str) -> bridge::Result<Scores> {
        let seen = heads.see(file)?;
        let mut scores = Scores::default();
        if self.min_itc.is_some() || self.has_scores {
            let text = heads.text_features(&[text])?.concat();
            scores.similarity = Some(similarity(&heads.picture_features(&seen)?, &text));
        }
        let is_near = reaches(scores.similarity, self.min_itc);
        if self.has_scores || (self.min_itm.is_some() && is_near) {
            scores.probability = heads.probabilities(&seen, &[text])?.first().copied();
        }
        Ok(scores)
    }

    fn keeps(self, row: &Row) -> bool {
        row.error.is_none()
            && reaches(row.similarity, self.min_itc)
            && reaches(row.probability, self.min_itm)
    }
}

/// Whether a score is as high as it must be, where it must be.
fn reaches(score: Option<f32>, least: Option<f32>) -> bool {
    least.is_none_or(|least| score.is_some_and(|score| score >= least))
}

fn write(args: &FilterArgs, table: &Table, rule: Rule, rows: &[Row]) -> Result<()> {
    let scores = |row: &Row| Scores {
        similarity: row.similarity,
        probability: row.probability,
    };
    let of = |number: u64| rows.get(usize::try_from(number).ok()?);
    let kept = |number| of(number).filter(|row| rule.keeps(row)).map(scores);
    let dropped = |number| of(number).filter(|row| !rule.keeps(row)).map(scores);
    let Some(out) = &args.out else {
        let mut stdout = std::io::stdout().lock();
        return table.write(&mut stdout, args.scores, &kept);
    };
    let spinner = spinner(format!("writing {}", out.display()));
    if let Some(out) = &args.dropped {
        table.copy(out, args.scores, &dropped)?;
    }
    table.copy(out, args.scores, &kept)?;
    spinner.finish_and_clear();
    Ok(())
}

/// What a run did.
#[derive(Debug, Serialize)]
struct Summary {
    /// Of the table.
    rows: u64,
    kept: u64,
    dropped: u64,
    /// Rows that could not be read, which are in no output but that of --dropped.
    errors: u64,
    /// Rows that an earlier run had scored.
    skipped: u64,
    /// Without those that loading the bundle took.
    seconds: f64,
    rows_per_second: f64,
    /// Whether it was stopped before the end.
    interrupted: bool,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} rows kept, {} dropped",
            HumanCount(self.kept),
            HumanCount(self.rows),
            HumanCount(self.dropped)
        )?;
        for (n, what) in [(self.errors, "failed"), (self.skipped, "scored before")] {
            if n > 0 {
                write!(f, ", {} {what}", HumanCount(n))?;
            }
        }
        write!(
            f,
            " in {}: {:.1} rows/s",
            HumanDuration(std::time::Duration::from_secs_f64(self.seconds)),
            self.rows_per_second
        )
    }
}
