//! `qbridge index`: the features of many pictures into a file that `qbridge search` reads.
//!
//! - `journal`: features as they come, kept until the index is written

mod journal;

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures_util::stream::{self, StreamExt};
use indicatif::{HumanCount, HumanDuration};
use search::{About, Index};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{INTERRUPTED, bundle_hash, print_json};
use crate::args::IndexArgs;
use crate::batch::{
    Existing, Failure, NameHash, Progress, Tally, hash, how_to_go_on, tell, watch_signals,
};
use crate::heads::{Heads, blocking};
use crate::inputs::{Inputs, Item, Loader, feed};
use crate::progress::spinner;
use journal::{Journal, Row};

/// Pictures that are read and computed at once.
const IN_FLIGHT: usize = 4;

/// Pictures whose vectors are put into the graph at once.
const ADDED_AT_ONCE: usize = 1024;

/// What is counted.
const PICTURES: &str = "pictures";

/// Runs the command.
pub fn run(args: &IndexArgs) -> Result<ExitCode> {
    let out = &args.out;
    if out.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        bail!("{}: this is no file", out.display());
    }
    let existing = Existing::of(args.add, args.overwrite);
    existing.check(out)?;
    let heads = Heads::open(&args.bundle, args.vision)?;
    let about = about(args, &heads)?;
    let mut index = match existing == Existing::Resume && out.exists() {
        true => load(out, &about)?,
        false => Index::new(about.clone())?,
    };
    let mut done: HashSet<NameHash> = index.names().iter().map(hash).collect();
    let (mut journal, rows) = Journal::open(out, existing, &about)?;
    done.extend(rows.names);
    let progress = Progress::new(PICTURES, done.len() as u64, rows.errors, args.quiet);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(see_all(args, heads, &mut journal, done, progress));
    // A file that is still being read, from a pipe for one, is not waited for.
    runtime.shutdown_background();
    let (tally, interrupted) = found?;
    // Pictures that all failed are no index; none at all, as a part of many may have, are one.
    let is_none =
        index.is_empty() && !journal.has_features() && tally.errors + tally.earlier_errors > 0;
    if !interrupted && !is_none {
        let spinner = spinner(format!("writing {}", out.display()));
        let added = add(&mut index, &journal)?;
        if added > 0 || !out.exists() {
            index.save(out)?;
        }
        spinner.finish_and_clear();
    }
    if !interrupted {
        journal.remove()?;
    }
    let summary = Summary {
        pictures: index.len(),
        indexed: tally.rows - tally.errors,
        errors: tally.errors + tally.earlier_errors,
        skipped: tally.skipped,
        seconds: tally.seconds,
        pictures_per_second: tally.rows_per_second,
        interrupted,
    };
    if !args.quiet {
        eprintln!("{summary}");
    }
    if interrupted {
        eprintln!("{}", how_to_go_on(true, args.add));
    }
    if args.json {
        print_json(&summary)?;
    }
    if !interrupted && is_none {
        bail!("no picture could be read: {} is not written", out.display());
    }
    Ok(match (interrupted, summary.errors) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

fn about(args: &IndexArgs, heads: &Heads) -> Result<About> {
    let (rows, dimensions) = heads.shape()?;
    let dir = std::path::absolute(&args.bundle);
    Ok(About {
        bundle: heads.manifest().name.clone(),
        bundle_hash: bundle_hash(heads.manifest()),
        bundle_dir: dir.unwrap_or_else(|_| args.bundle.clone()),
        dimensions,
        rows,
        image_column: args.image_column.clone(),
    })
}

fn load(path: &Path, about: &About) -> Result<Index> {
    let spinner = spinner(format!("reading {}", path.display()));
    let index = Index::load(path)?;
    spinner.finish_and_clear();
    check_bundle(path, index.about(), &about.bundle_hash, &about.bundle)?;
    if index.about().image_column != about.image_column {
        bail!(
            "{}: its pictures came from another column of Parquet files ({}): name it with --image-column",
            path.display(),
            index
                .about()
                .image_column
                .as_deref()
                .unwrap_or("none named")
        );
    }
    Ok(index)
}

/// Refuses a bundle that did not make an index: features of two models are not comparable.
///
/// # Errors
/// It is another one.
pub fn check_bundle(path: &Path, about: &About, hash: &str, name: &str) -> Result<()> {
    if about.bundle_hash != hash {
        bail!(
            "{}: it was made by the bundle {} ({}), and this is {name} ({hash}), whose features are others",
            path.display(),
            about.bundle,
            about.bundle_hash
        );
    }
    Ok(())
}

/// Computes the features of all pictures into the journal.
async fn see_all(
    args: &IndexArgs,
    heads: Heads,
    journal: &mut Journal,
    mut done: HashSet<NameHash>,
    mut progress: Progress,
) -> Result<(Tally, bool)> {
    let (heads, loader) = (Arc::new(heads), Loader::new()?);
    let inputs = Inputs::new(&args.inputs, args.null, args.image_column.as_deref());
    let is_new = move |name: &str| done.insert(hash(name));
    let mut found = feed::find(&inputs, args.shard, progress.bar(), PICTURES, is_new);
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let mut rows = stream::poll_fn(|context| found.items.poll_recv(context))
        .take_until(&mut stopped)
        .map(|item| see(&heads, &loader, item))
        .buffered(IN_FLIGHT);
    while let Some(row) = rows.next().await {
        let row = row?;
        if let Some(error) = &row.error {
            progress.suspend(|| tell(&row.image, error));
        }
        journal.write(&row)?;
        progress.count(row.error.is_some(), 0);
    }
    drop(rows);
    let interrupted = stopped.is_terminated();
    progress.clear();
    if !interrupted && !found.finish() {
        bail!("finding the pictures failed: --add goes on with those that were found");
    }
    Ok((progress.tally(), interrupted))
}

async fn see(heads: &Arc<Heads>, loader: &Loader, item: Item) -> Result<Row> {
    let Item { name, picture, .. } = item;
    let features = async {
        let file = loader.load(picture, |_| Ok(())).await?;
        let heads = heads.clone();
        blocking(move || Ok(heads.picture_features(&heads.see(&file)?)?)).await
    };
    match features.await {
        Ok(features) => Ok(Row::seen(name, &features)),
        Err(Failure::Picture(error)) => Ok(Row::failed(name, error)),
        Err(Failure::Run(error)) => Err(error),
    }
}

/// Puts the journal's pictures into the index; how many.
fn add(index: &mut Index, journal: &Journal) -> Result<usize> {
    let mut added = 0;
    let mut pictures = Vec::new();
    let n = index.about().rows * index.about().dimensions;
    journal.read(|row| {
        let (name, features) = row.features().context("features")?;
        if let Some(features) = features.filter(|features| features.len() == n) {
            pictures.push((name, features));
        }
        if pictures.len() == ADDED_AT_ONCE {
            added += pictures.len();
            index.add(std::mem::take(&mut pictures))?;
        }
        Ok(())
    })?;
    added += pictures.len();
    index.add(pictures)?;
    Ok(added)
}

/// What a run did.
#[derive(Debug, Serialize)]
struct Summary {
    /// In the index, all together.
    pictures: usize,
    /// In this run.
    indexed: u64,
    /// Pictures that failed.
    errors: u64,
    /// Pictures that were in the index, or in that of a run that was stopped.
    skipped: u64,
    /// Without those that loading the bundle took.
    seconds: f64,
    pictures_per_second: f64,
    /// Whether it was stopped before the end.
    interrupted: bool,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} indexed", HumanCount(self.indexed))?;
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
