//! How often a stage runs.

use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::ProgressBar;

use super::report::Stage;
use crate::args::BenchArgs;
use crate::progress;

/// Runs stages as often as the command line says, and shows which one.
pub struct Timer<'a> {
    args: &'a BenchArgs,
    bar: ProgressBar,
}

impl<'a> Timer<'a> {
    /// Shows nothing yet.
    pub fn new(args: &'a BenchArgs) -> Timer<'a> {
        let bar = progress::spinner(String::new());
        Timer { args, bar }
    }

    /// Runs `work` some times for nothing, then as often as it is to be measured, and gives what came of the last run.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn timed<T>(
        &self,
        name: &'static str,
        mut work: impl FnMut() -> Result<T>,
    ) -> Result<(T, Stage)> {
        let mut last = None;
        let seconds = self.measured(name, || {
            let started = Instant::now();
            last = Some(work()?);
            Ok(started.elapsed().as_secs_f64())
        })?;
        match last {
            Some(last) => Ok((last, Stage::of_pictures(name, 1, seconds))),
            None => bail!("{name} did not run"),
        }
    }

    /// The same, where `run` tells the seconds.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn measured(&self, name: &str, mut run: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
        self.bar.set_message(format!("measuring {name}"));
        for _ in 0..self.args.warm_up {
            run()?;
        }
        (0..self.args.repeat).map(|_| run()).collect()
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
