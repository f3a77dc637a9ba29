//! `qbridge caption`: many pictures, one row each.
//!
//! - `inputs`: finds pictures, on a thread of its own
//! - `captioner`: reads them, asks the model, and makes rows of its answers, many at once
//! - `itg`: writes the captions where there is no language model
//! - `outputs`: writes the rows, and knows those of an earlier run
//! - `rows`: what a row is
//! - `summary`: what it did

mod captioner;
mod inputs;
mod itg;
mod outputs;
mod rows;
mod summary;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::thread::JoinHandle;

use anyhow::{Result, bail};
use bridge::bundle::Manifest;
use futures_util::stream::{self, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::{INTERRUPTED, print_json};
use crate::args::{CaptionArgs, Shard};
use crate::batch::{Progress, how_to_go_on, set_total, watch_signals};
use captioner::{Captioned, Captioner};
use inputs::{Inputs, Item, Visitor};
use outputs::{Earlier, Output, Sidecars};
use rows::Done;
use summary::Summary;

/// Pictures that were found and wait to be read; those of archives are in memory.
const FOUND: usize = 4;

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
    let done = earlier.done;
    let mut progress = Progress::new(PICTURES, done.count, done.errors, args.quiet);
    let (mut items, finder) = find(args, sidecars, done, &progress);
    let (stop, mut stopped) = oneshot::channel();
    tokio::spawn(watch_signals(stop));
    let rows = stream::poll_fn(|context| items.poll_recv(context))
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
        if finder.join().is_err() {
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

/// Finds the pictures, on a thread that ends with the program where it waits for a list.
fn find(
    args: &CaptionArgs,
    sidecars: Option<Sidecars>,
    done: Done,
    progress: &Progress,
) -> (mpsc::Receiver<Item>, JoinHandle<ControlFlow<()>>) {
    let (items, found) = mpsc::channel(FOUND);
    let inputs = Inputs::new(args);
    let shard = args.shard;
    if let Some(bar) = progress.bar().filter(|_| inputs.can_be_walked_twice()) {
        let inputs = inputs.clone();
        std::thread::spawn(move || {
            let mut counter = Counter { shard, count: 0 };
            if inputs.walk(&mut counter).is_continue() {
                set_total(&bar, PICTURES, counter.count);
            }
        });
    }
    let mut feeder = Feeder {
        shard,
        done,
        sidecars,
        items,
    };
    let finder = std::thread::spawn(move || inputs.walk(&mut feeder));
    (found, finder)
}

/// Hands over what is still to be done.
struct Feeder {
    shard: Option<Shard>,
    done: Done,
    sidecars: Option<Sidecars>,
    items: mpsc::Sender<Item>,
}

impl Visitor for Feeder {
    fn wants(&mut self, name: &str) -> bool {
        let is_done = |sidecars: &Sidecars| sidecars.is_done(Path::new(name));
        self.shard.is_none_or(|shard| shard.holds(name))
            && !self.done.take(name)
            && !self.sidecars.as_ref().is_some_and(is_done)
    }

    fn take(&mut self, item: Item) -> ControlFlow<()> {
        match self.items.blocking_send(item) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Counts pictures and reads none.
struct Counter {
    shard: Option<Shard>,
    count: u64,
}

impl Visitor for Counter {
    fn wants(&mut self, name: &str) -> bool {
        self.count += u64::from(self.shard.is_none_or(|shard| shard.holds(name)));
        false
    }

    fn take(&mut self, _: Item) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
