//! What a run did, at the end.

use std::time::Duration;

use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;

use crate::batch::Tally;

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

impl Summary {
    /// Of what was counted; `below_min_score` rows have neither caption nor error.
    pub fn new(tally: Tally, below_min_score: u64, interrupted: bool) -> Summary {
        Summary {
            pictures: tally.rows,
            captioned: tally.rows - tally.errors - below_min_score,
            below_min_score,
            errors: tally.errors,
            skipped: tally.skipped,
            earlier_errors: tally.earlier_errors,
            tokens: tally.tokens,
            seconds: tally.seconds,
            pictures_per_second: tally.rows_per_second,
            tokens_per_second: tally.tokens_per_second,
            interrupted,
        }
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
