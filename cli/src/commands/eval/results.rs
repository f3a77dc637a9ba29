//! What is printed in the end.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use eval::{Answers, Dataset, Report, score};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;

use super::super::print_json;
use super::journal::replace;
use super::settings::Settings;
use crate::args::EvalArgs;
use crate::batch::Tally;
use crate::progress::spinner;

/// The same answers have the same intervals.
pub const SEED: u64 = 0;

/// Scores, and what they are of.
#[derive(Debug, Serialize)]
pub struct Results {
    #[serde(flatten)]
    report: Report,
    /// Questions that have an error instead of an answer, and count in no score.
    errors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
}

impl Results {
    /// Scores answers, which stand at `path`, and writes them as the benchmark's server takes them where that is asked
    /// for and no question failed.
    ///
    /// # Errors
    /// A question has neither an answer nor an error, an answer is to something else, or the answers cannot be written.
    pub fn new(
        args: &EvalArgs,
        mut dataset: Dataset,
        answers: &Answers,
        path: &Path,
    ) -> Result<Results> {
        let is_part = args.limit.is_some() || args.shard.is_some();
        answers.check(&dataset, path, is_part)?;
        let asked = dataset.records.len();
        let records = &mut dataset.records;
        records.retain(|record| !answers.has_failed(&record.id));
        let errors = asked - records.len();
        let texts = answers.aligned(&dataset, path)?;
        if let Some(submission) = &args.submission {
            match errors {
                0 => replace(submission, &Answers::submission(&dataset, &texts))?,
                _ => tell_not_written(args, submission, errors, asked),
            }
        }
        let spinner = spinner("scoring".to_owned());
        let report = score(&dataset, &texts, SEED);
        spinner.finish_and_clear();
        Ok(Results {
            report,
            errors,
            settings: None,
            run: None,
        })
    }

    /// With what a run was told and did.
    pub fn of_run(self, settings: Settings, run: Run) -> Results {
        Results {
            settings: Some(settings),
            run: Some(run),
            ..self
        }
    }

    /// Prints them: a table, or JSON.
    ///
    /// # Errors
    /// They cannot be printed.
    pub fn print(&self, args: &EvalArgs) -> Result<ExitCode> {
        match args.json {
            true => print_json(self)?,
            false => print_text(self)?,
        }
        Ok(match self.errors {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

/// Scorers take an answer to each question, and POPE's pairs them with the questions by their lines alone.
fn tell_not_written(args: &EvalArgs, submission: &Path, errors: usize, asked: usize) {
    let again = match args.out.as_ref().or(args.answers.as_ref()) {
        Some(rows) => format!(
            "take the lines with an error out of {0}, and ask again with --out {0} --resume",
            rows.display()
        ),
        None => "ask again".to_owned(),
    };
    eprintln!(
        "qbridge: {} is not written: {errors} of {asked} questions failed, and it holds an answer to each. \
         Where the pictures can be read, {again}",
        submission.display(),
    );
}

fn print_text(results: &Results) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{results}")?;
    Ok(out.flush()?)
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.report.records {
            0 => write!(
                f,
                "no scores: no question has both an answer and a published one"
            )?,
            _ => self.report.fmt(f)?,
        }
        match self.errors {
            0 => Ok(()),
            n => write!(
                f,
                "\n{} more failed and are in no score",
                HumanCount(n as u64)
            ),
        }
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Run {
    /// Questions that were asked.
    questions: u64,
    /// Those with an answer.
    answered: u64,
    /// Those that failed.
    errors: u64,
    /// Questions that an earlier run had asked.
    skipped: u64,
    /// Tokens of the answers.
    tokens: u64,
    /// Seconds, without those that loading the bundle took.
    seconds: f64,
    questions_per_second: f64,
    tokens_per_second: f64,
    /// Whether it was stopped before the end.
    #[serde(skip)]
    pub interrupted: bool,
}

impl Run {
    /// Of what was counted.
    pub fn new(tally: Tally, interrupted: bool) -> Run {
        Run {
            questions: tally.rows,
            answered: tally.rows - tally.errors,
            errors: tally.errors,
            skipped: tally.skipped,
            tokens: tally.tokens,
            seconds: tally.seconds,
            questions_per_second: tally.rows_per_second,
            tokens_per_second: tally.tokens_per_second,
            interrupted,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered", HumanCount(self.answered))?;
        for (n, what) in [(self.errors, "failed"), (self.skipped, "done before")] {
            if n > 0 {
                write!(f, ", {} {what}", HumanCount(n))?;
            }
        }
        write!(
            f,
            " in {}: {:.1} questions/s, {:.0} tokens/s",
            HumanDuration(Duration::from_secs_f64(self.seconds)),
            self.questions_per_second,
            self.tokens_per_second
        )
    }
}
