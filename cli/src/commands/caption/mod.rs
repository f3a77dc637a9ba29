//! `qbridge caption`: many pictures, one row each.
//!
//! - `captioner`: reads them, asks the model, and makes rows of its answers, many at once
//! - `itg`: writes the captions where there is no language model
//! - `outputs`: writes the rows, and knows those of an earlier run
//! - `rows`: what a row is
//! - `summary`: what it did

mod captioner;
pub mod itg;
mod outputs;
mod rows;
mod summary;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use bridge::bundle::Manifest;
use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;

use super::{INTERRUPTED, print_json};
use crate::args::CaptionArgs;
use crate::batch::{Progress, how_to_go_on, tell, watch_signals};
use crate::inputs::{Inputs, feed};
pub use captioner::Captioner;

use captioner::Captioned;
use outputs::{Earlier, Output, Prepared, Sidecars};
use rows::Row;
use summary::Summary;

/// What is counted.
const PICTURES: &str = "pictures";

/// Runs the command.
pub fn run(args: &CaptionArgs) -> Result<ExitCode> {
    let manifest = Manifest::read(&args.bundle)?;
    let (output, earlier) = Output::open(args, &manifest)?;
    let sidecars = Sidecars::of(args, earlier.replaces_sidecars);
    let captioner = Captioner::open(args, &manifest, sidecars.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(caption_all(args, &captioner, output, sidecars, earlier));
    // A file that is still being read, from a pipe for one, is not waited for.
    runtime.shutdown_background();
    done
}

async fn caption_all(
    args: &CaptionArgs,
    captioner: &Captioner,
    mut output: Output,
    sidecars: Option<Sidecars>,
    earlier: Earlier,
) -> Result<ExitCode> {
    let mut done = earlier.done;
    if let (Some(sidecars), Some(row)) = (&sidecars, &earlier.last) {
        // The run before may have been killed between the row and the file beside its picture.
        if let Err(error) = write_again(sidecars, row) {
            tell(&row.image, &format!("{error:#}"));
            done.errors += 1;
        }
    }
    let earlier_rows = done.count;
    let mut progress = Progress::new(PICTURES, earlier_rows, done.errors, args.quiet);
    let inputs = Inputs::new(&args.inputs, args.null, args.image_column.as_deref());
    // Without another output, what is done is found out by the files beside pictures.
    let n_beside = Arc::new(AtomicU64::new(0));
    let is_new = {
        let (sidecars, n_beside) = (sidecars.clone(), n_beside.clone());
        move |name: &str| {
            let mut sidecars = sidecars.iter();
            let has_sidecar = sidecars.any(|sidecars| sidecars.is_done(Path::new(name)));
            n_beside.fetch_add(u64::from(has_sidecar), Ordering::Relaxed);
            !has_sidecar && !done.take(name)
        }
    };
    let skipped = || earlier_rows + n_beside.load(Ordering::Relaxed);
    let mut found = feed::find(&inputs, args.shard, progress.bar(), PICTURES, is_new);
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let rows = stream::poll_fn(|context| found.items.poll_recv(context))
        .take_until(&mut stopped)
        .map(|item| captioner.caption(item));
    let mut rows = match args.unordered {
        false => rows.buffered(captioner.in_flight()).left_stream(),
        true => rows.buffer_unordered(captioner.in_flight()).right_stream(),
    };
    let mut below_min_score = 0;
    while let Some(captioned) = rows.next().await {
        let (mut row, picture): Captioned = captioned?;
        // Before the row is written, which says what is wrong with it; it is put in its place behind the row, so that
        // none is there without a row.
        let prepared = prepare(sidecars.as_ref(), picture.as_deref(), &mut row);
        match output.is_stdout() {
            true => progress.suspend(|| output.write(&row))?,
            false => output.write(&row)?,
        }
        let mut has_failed = row.error.is_some();
        if let Some(Err(error)) = prepared.map(Prepared::put) {
            progress.suspend(|| tell(&row.image, &format!("{error:#}")));
            has_failed = true;
        }
        let tokens = row.usage.map_or(0, |usage| usage.completion_tokens);
        progress.set_skipped(skipped());
        progress.count(has_failed, tokens);
        below_min_score += u64::from(!has_failed && row.caption.is_none());
    }
    drop(rows);
    let interrupted = stopped.is_terminated();
    progress.set_skipped(skipped());
    progress.clear();
    let summary = Summary::new(progress.tally(), below_min_score, interrupted);
    if !args.quiet {
        eprintln!("{summary}");
    }
    if interrupted {
        // Files that were to be replaced do not tell which of them are new.
        let is_written = args.out.is_some() || (args.sidecar.is_some() && !args.overwrite);
        eprintln!("{}", how_to_go_on(is_written, args.resume));
    } else {
        if !found.finish() {
            bail!("finding the pictures failed: what is written is whole, but not all of it");
        }
        output.finish()?;
    }
    if args.json {
        print_json(&summary)?;
    }
    Ok(
        match (interrupted, summary.errors + summary.earlier_errors) {
            (true, _) => ExitCode::from(INTERRUPTED),
            (false, 0) => ExitCode::SUCCESS,
            (false, _) => ExitCode::FAILURE,
        },
    )
}

/// The file beside a picture that has a caption; else the row says why there is none.
fn prepare(sidecars: Option<&Sidecars>, picture: Option<&Path>, row: &mut Row) -> Option<Prepared> {
    let (sidecars, picture) = (sidecars?, picture?);
    row.caption.as_ref()?;
    match sidecars.prepare(picture, row.captions()) {
        Ok(prepared) => Some(prepared),
        Err(error) => {
            row.error = Some(format!("{error:#}"));
            None
        }
    }
}

/// Writes the file beside the picture of an earlier run's row, where it should have one.
fn write_again(sidecars: &Sidecars, row: &Row) -> Result<()> {
    let picture = Path::new(&row.image);
    match row.caption.is_some() && row.error.is_none() && picture.is_file() {
        true => sidecars.write_again(picture, row.captions()),
        false => Ok(()),
    }
}
