//! VQA accuracy (Antol et al. 2015, arXiv:1505.00468) with the answer normalization of the official scorer:
//! `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA at c4e6a0e, which LAVIS carries too.
//! VQAv2 and OK-VQA are scored so.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use crate::text::{strip, words};

/// One of the ten answers that people gave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HumanAnswer {
    answer: String,
    /// Every other field. The scorer leaves out each person's answer in turn, and those that equal it in
    /// all fields with it.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl HumanAnswer {
    /// What the person `answer_id` said.
    pub fn new(answer: &str, answer_id: u64) -> Self {
        Self {
            answer: answer.to_owned(),
            rest: [("answer_id".to_owned(), answer_id.into())]
                .into_iter()
                .collect(),
        }
    }
}

/// The ten answers in the form in which they are compared.
#[derive(Debug, Clone)]
pub struct Humans {
    answers: Vec<String>,
    /// Of each answer, the first one that equals it in all fields.
    twins: Vec<usize>,
}

impl Humans {
    /// Where they agree, people's answers stay as they are; else their punctuation is normalized, and only
    /// that.
    pub fn new(answers: &[HumanAnswer]) -> Self {
        let agree = answers
            .windows(2)
            .all(|pair| pair[0].answer == pair[1].answer);
        let processed: Vec<String> = answers
            .iter()
            .map(|human| match agree {
                true => human.answer.clone(),
                false => process_punctuation(&human.answer, has_comma_in_number(&human.answer)),
            })
            .collect();
        let equal =
            |i: usize, j: usize| processed[i] == processed[j] && answers[i].rest == answers[j].rest;
        let twins = (0..answers.len())
            .map(|i| (0..i).find(|&j| equal(i, j)).unwrap_or(i))
            .collect();
        Self {
            answers: processed,
            twins,
        }
    }

    /// Accuracy of a normalized answer: the mean, over the people, of how many of the others said it,
    /// counted in thirds up to one.
    pub fn accuracy(&self, normalized: &str) -> f64 {
        let said: Vec<bool> = self
            .answers
            .iter()
            .map(|answer| answer == normalized)
            .collect();
        let mean = |i: &usize| {
            let others = said
                .iter()
                .zip(&self.twins)
                .filter(|(said, twin)| **said && *twin != i)
                .count();
            (others as f64 / 3.0).min(1.0)
        };
        self.twins.iter().map(mean).sum::<f64>() / self.twins.len().max(1) as f64
    }
}

/// Accuracy of an answer as a model gave it, from 0 to 1.
pub fn accuracy(answer: &str, humans: &[HumanAnswer]) -> f64 {
    Humans::new(humans).accuracy(&normalize(answer))
}

/// An answer in the form in which it is compared: lowercase, without punctuation and articles, numbers to
/// ten as digits, contractions with their apostrophes.
pub fn normalize(answer: &str) -> String {
    let answer = answer.replace(['\n', '\t'], " ");
    let answer = strip(&answer);
    process_digits_and_articles(&process_punctuation(answer, has_comma_in_number(answer)))
}

const PUNCTUATION: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',',
    '?', '!',
];

/// Periods that go: the third argument of the scorer's `sub` is a count, and `re.UNICODE` is 32.
const MAX_PERIODS: usize = 32;

#[allow(clippy::expect_used)]
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern of this file")
}

fn has_comma_in_number(text: &str) -> bool {
    static COMMA: LazyLock<Regex> = LazyLock::new(|| regex(r"\d,\d"));
    COMMA.is_match(text)
}

/// Punctuation that touches a space is dropped, other punctuation becomes one; where `drop` holds, all is
/// dropped. A period goes unless a digit follows.
pub(crate) fn process_punctuation(text: &str, drop: bool) -> String {
    let mut out = text.to_owned();
    for p in PUNCTUATION {
        if !out.contains(p) {
            continue;
        }
        let touches_space = text.contains(&format!("{p} ")) || text.contains(&format!(" {p}"));
        out = out.replace(p, if drop || touches_space { "" } else { " " });
    }
    if !out.contains('.') {
        return out;
    }
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| regex(r"^\d"));
    let mut stripped = String::with_capacity(out.len());
    let mut periods = 0;
    for (i, c) in out.char_indices() {
        if c == '.' && periods < MAX_PERIODS && !DIGIT.is_match(&out[i + 1..]) {
            periods += 1;
        } else {
            stripped.push(c);
        }
    }
    stripped
}

pub(crate) fn process_digits_and_articles(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = words(&lower)
        .map(
            |word| match NUMBERS.iter().find(|(name, _)| *name == word) {
                Some((_, digits)) => digits,
                None => word,
            },
        )
        .filter(|word| !["a", "an", "the"].contains(word))
        .map(|word| CONTRACTIONS.get(word).copied().unwrap_or(word))
        .collect();
    words.join(" ")
}

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Contractions that are recognized with all their apostrophes missing; those with two or more of them,
/// with any one missing.
const CONTRACTED: &str = "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd \
    he's how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock \
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd \
    something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't \
    what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's \
    won't would've wouldn't y'all you'd you'll you're you've couldn't've hadn't've he'd've it'd've mightn't've \
    'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've \
    wouldn't've y'all'll y'all'd've you'd've";

/// From what is written to the contraction that is meant.
static CONTRACTIONS: LazyLock<HashMap<String, &'static str>> = LazyLock::new(|| {
    // The scorer's table has this one the wrong way round.
    let mut table = HashMap::from([("somebody'd".to_owned(), "somebodyd")]);
    for word in CONTRACTED.split_whitespace() {
        let apostrophes: Vec<usize> = word.match_indices('\'').map(|(i, _)| i).collect();
        for i in apostrophes {
            table.insert([&word[..i], &word[i + 1..]].concat(), word);
        }
    }
    table
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_who_answered_twice_counts_as_two_only_with_an_id() {
        let with_ids: Vec<_> = (0..4).map(|i| HumanAnswer::new("cat", i)).collect();
        assert_eq!(accuracy("cat", &with_ids), 1.0);
        let twins: Vec<_> = (0..4).map(|_| HumanAnswer::new("cat", 1)).collect();
        assert_eq!(accuracy("cat", &twins), 0.0);
    }

    #[test]
    fn only_32_periods_go() {
        assert_eq!(normalize(&"a.".repeat(40)).matches('.').count(), 8);
    }
}
