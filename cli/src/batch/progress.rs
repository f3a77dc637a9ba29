//! How far a run is, on a terminal, and what it did, at the end.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Rows written.
    pub rows: u64,
    /// Those that failed.
    pub errors: u64,
    /// Rows of an earlier run.
    pub skipped: u64,
    /// Those that failed in it.
    pub earlier_errors: u64,
    /// Tokens of the answers.
    pub tokens: u64,
    /// Seconds, without those that loading the bundle took.
    pub seconds: f64,
    /// Of this run.
    pub rows_per_second: f64,
    /// Of this run.
    pub tokens_per_second: f64,
}

/// Counts, and draws what it counts.
pub struct Progress {
    bar: ProgressBar,
    /// What is counted, in the plural.
    what: &'static str,
    started: Instant,
    tally: Tally,
}

impl Progress {
    /// Begins to count `what`. `skipped` were done before, `earlier_errors` of them failed.
    pub fn new(what: &'static str, skipped: u64, earlier_errors: u64, is_quiet: bool) -> Progress {
        let bar = match is_quiet {
            true => ProgressBar::hidden(),
            false => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
        };
        set_style(&bar, &format!("{{spinner}} {{pos}} {what}, {{msg}}"));
        bar.set_position(skipped);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress {
            bar,
            what,
            started: Instant::now(),
            tally: Tally {
                skipped,
                earlier_errors,
                ..Tally::default()
            },
        }
    }

    /// What is drawn, where anything is, to tell it how many there are.
    pub fn bar(&self) -> Option<ProgressBar> {
        (!self.bar.is_hidden()).then(|| self.bar.clone())
    }

    /// Prints something else meanwhile.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Tells how many were done before, where that is found out on the way.
    pub fn set_skipped(&mut self, skipped: u64) {
        self.bar.inc(skipped.saturating_sub(self.tally.skipped));
        self.tally.skipped = skipped;
    }

    /// Counts a row with the tokens of its answers.
    pub fn count(&mut self, failed: bool, tokens: usize) {
        self.tally.rows += 1;
        self.tally.errors += u64::from(failed);
        self.tally.tokens += tokens as u64;
        self.bar.inc(1);
        let (tally, what) = (self.tally(), self.what);
        self.bar.set_message(format!(
            "{:.1} {what}/s, {:.0} tokens/s, {} errors",
            tally.rows_per_second, tally.tokens_per_second, tally.errors
        ));
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = |n: u64| n as f64 / seconds.max(f64::MIN_POSITIVE);
        Tally {
            seconds,
            rows_per_second: rate(self.tally.rows),
            tokens_per_second: rate(self.tally.tokens),
            ..self.tally
        }
    }

    /// Draws no more.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Tells a bar how many of `what` there are in all.
pub fn set_total(bar: &ProgressBar, what: &str, total: u64) {
    bar.set_length(total);
    let template = format!("{{wide_bar}} {{pos}}/{{len}} {what}, {{msg}}, {{eta}} left");
    set_style(bar, &template);
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
