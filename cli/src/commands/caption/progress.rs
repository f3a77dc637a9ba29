//! How far a run is, on a terminal, and what it did, at the end.

use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::rows::Row;

/// What a run did.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    /// Rows written.
    pub pictures: u64,
    /// Those with a caption.
    pub captioned: u64,
    /// Those whose captions scored too little.
    pub below_min_score: u64,
    /// Those that failed.
    pub errors: u64,
    /// Pictures that an earlier run had done.
    pub skipped: u64,
    /// Those that failed in it.
    pub earlier_errors: u64,
    /// Tokens of the captions.
    pub tokens: u64,
    /// Seconds, without those that loading the bundle took.
    pub seconds: f64,
    /// Of this run.
    pub pictures_per_second: f64,
    /// Of this run.
    pub tokens_per_second: f64,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
}

/// Counts, and draws what it counts.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    summary: Summary,
}

impl Progress {
    /// Begins to count. `skipped` pictures were done before, `earlier_errors` of them failed.
    pub fn new(skipped: u64, earlier_errors: u64, is_quiet: bool) -> Progress {
        let bar = match is_quiet {
            true => ProgressBar::hidden(),
            false => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        };
        set_style(&bar, "{spinner} {pos} pictures, {msg}");
        bar.set_position(skipped);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress {
            bar,
            started: Instant::now(),
            summary: Summary {
                skipped,
                earlier_errors,
                ..Summary::default()
            },
        }
    }

    /// What is drawn, where anything is, to tell it how many pictures there are.
    pub fn bar(&self) -> Option<ProgressBar> {
        (!self.bar.is_hidden()).then(|| self.bar.clone())
    }

    /// Prints something else meanwhile.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Counts a row.
    pub fn count(&mut self, row: &Row) {
        let summary = &mut self.summary;
        summary.pictures += 1;
        match (&row.error, &row.caption) {
            (Some(_), _) => summary.errors += 1,
            (None, Some(_)) => summary.captioned += 1,
            (None, None) => summary.below_min_score += 1,
        }
        let tokens = row.usage.map_or(0, |usage| usage.completion_tokens);
        summary.tokens += tokens as u64;
        self.bar.inc(1);
        let Summary {
            pictures_per_second,
            tokens_per_second,
            errors,
            ..
        } = self.summary(false);
        self.bar.set_message(format!(
            "{pictures_per_second:.1} pictures/s, {tokens_per_second:.0} tokens/s, {errors} errors"
        ));
    }

    /// What was done so far.
    pub fn summary(&self, interrupted: bool) -> Summary {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = |n: u64| n as f64 / seconds.max(f64::MIN_POSITIVE);
        Summary {
            seconds,
            pictures_per_second: rate(self.summary.pictures),
            tokens_per_second: rate(self.summary.tokens),
            interrupted,
            ..self.summary
        }
    }

    /// Draws no more.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Tells a bar how many pictures there are in all.
pub fn set_total(bar: &ProgressBar, total: u64) {
    bar.set_length(total);
    set_style(bar, "{wide_bar} {pos}/{len} pictures, {msg}, {eta} left");
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} captioned", HumanCount(self.captioned))?;
        for (n, what) in [
            (self.errors, "failed"),
            (self.below_min_score, "below the score"),
            (self.skipped, "done before"),
        ] {
            if n > 0 {
                write!(f, ", {} {what}", HumanCount(n))?;
            }
        }
        if self.earlier_errors > 0 {
            write!(f, " ({} of them failed)", HumanCount(self.earlier_errors))?;
        }
        write!(
            f,
            " in {}: {:.1} pictures/s, {:.0} tokens/s",
            HumanDuration(Duration::from_secs_f64(self.seconds)),
            self.pictures_per_second,
            self.tokens_per_second
        )
    }
}
