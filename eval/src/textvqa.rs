//! TextVQA accuracy (Singh et al. 2019, arXiv:1904.08920) as the official scorer has it:
//! `mmf/utils/m4c_evaluators.py`, `TextVQAAccuracyEvaluator` of facebookresearch/mmf.

use std::sync::LazyLock;

use regex::Regex;

use crate::text::strip;
use crate::vqa::{process_digits_and_articles, process_punctuation};

/// Answers of people to each question.
pub const HUMANS: usize = 10;

/// An answer in the form in which it is compared, a person's as well as a model's.
pub fn normalize(answer: &str) -> String {
    #[allow(clippy::expect_used)]
    static COMMA: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d,+\d").expect("a pattern of this file"));
    let answer = answer
        .to_lowercase()
        .replace([',', '?'], "")
        .replace("'s", " 's");
    let answer = strip(&answer).replace(['\n', '\t'], " ");
    let answer = strip(&answer);
    process_digits_and_articles(&process_punctuation(answer, COMMA.is_match(answer)))
}

/// Accuracy of a normalized answer, from 0 to 1, beside people's normalized answers: over each person left
/// out, how many of the others said it, counted in thirds up to one.
pub fn accuracy(normalized: &str, humans: &[String]) -> f64 {
    let said = humans.iter().filter(|human| *human == normalized).count();
    if said == 0 {
        return 0.0;
    }
    let others = |count: usize| (count as f64 / 3.0).min(1.0);
    let total = said as f64 * others(said - 1) + (humans.len() - said) as f64 * others(said);
    total / humans.len() as f64
}
