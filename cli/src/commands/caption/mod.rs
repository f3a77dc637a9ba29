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

use anyhow::{Result, bail};
use bridge::bundle::Manifest;
use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;

use super::{INTERRUPTED, print_json};
use crate::args::CaptionArgs;
use crate::batch::{Progress, how_to_go_on, watch_signals};
use crate::inputs::{Inputs, feed};
pub use captioner::Captioner;

use captioner::Captioned;
use outputs::{Earlier, Output, Sidecars};
use summary::Summary;

/// What is counted.
const PICTURES: &str = "pictures";

/// Runs the command.
pub fn run(args: &CaptionArgs) -> Result<ExitCode> {
    let manifest = Manifest::read(&args.bundle)?;
    let (output, earlier) = Output::open(args)?;
    let captioner = Captioner::open(args, &manifest)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(caption_all(args, &captioner, output, earlier));
    // A file that is still being read, from a pipe for one, is not waited for.
    runtime.shutdown_background();
    done
}

async fn caption_all(
    args: &CaptionArgs,
    captioner: &Captioner,
    mut output: Output,
    earlier: Earlier,
) -> Result<ExitCode> {
    let sidecars = Sidecars::of(args);
    if let (Some(sidecars), Some(row)) = (sidecars, &earlier.last) {
        // The run before may have been killed between the row and the file beside its picture.
        let picture = Path::new(&row.image);
        if row.caption.is_some() && picture.is_file() {
            sidecars.write(picture, row.captions())?;
        }
    }
    let mut done = earlier.done;
    let mut progress = Progress::new(PICTURES, done.count, done.errors, args.quiet);
    let inputs = Inputs::new(&args.inputs, args.null, args.image_column.as_deref());
    let has_sidecar = move |name: &str| sidecars.is_some_and(|s| s.is_done(Path::new(name)));
    let is_new = move |name: &str| !done.take(name) && !has_sidecar(name);
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
        let (row, picture): Captioned = captioned?;
        match output.is_stdout() {
            true => progress.suspend(|| output.write(&row))?,
            false => output.write(&row)?,
        }
        if let (Some(sidecars), Some(picture), Some(_)) = (sidecars, &picture, &row.caption) {
            sidecars.write(picture, row.captions())?;
        }
        let tokens = row.usage.map_or(0, |usage| usage.completion_tokens);
        progress.count(row.error.is_some(), tokens);
        below_min_score += u64::from(row.error.is_none() && row.caption.is_none());
    }
    drop(rows);
    let interrupted = stopped.is_terminated();
    progress.clear();
    let summary = Summary::new(progress.tally(), below_min_score, interrupted);
    if !args.quiet {
        eprintln!("{summary}");
    }
    if interrupted {
        let is_written = args.out.is_some() || args.sidecar.is_some();
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
