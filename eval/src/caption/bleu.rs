//! BLEU (Papineni et al. 2002) as `pycocoevalcap/bleu/bleu_scorer.py` has it: lengths are compared with the
//! closest reference, and small numbers stand in for nothing.

use std::collections::HashMap;

use super::Pair;
use crate::text::words;

/// Longest n-grams that are counted.
pub const MAX_N: usize = 4;

const SMALL: f64 = 1e-9;
const TINY: f64 = 1e-15;

/// What BLEU adds up over captions.
#[derive(Debug, Clone, Copy, Default)]
pub struct BleuStats {
    candidate_len: f64,
    reference_len: f64,
    /// n-grams of the candidate, by n from 1.
    guesses: [f64; MAX_N],
    /// Those of them that a reference has, each as often as there at most.
    correct: [f64; MAX_N],
}

impl BleuStats {
    /// Of one caption.
    pub fn of(pair: &Pair) -> Self {
        let candidate: Vec<&str> = words(&pair.candidate).collect();
        let references: Vec<Vec<&str>> = pair
            .references
            .iter()
            .map(|reference| words(reference).collect())
            .collect();
        let closest = references
            .iter()
            .map(Vec::len)
            .min_by_key(|len| (len.abs_diff(candidate.len()), *len));
        let mut most: HashMap<&[&str], usize> = HashMap::new();
        for reference in &references {
            for (ngram, count) in ngrams(reference) {
                let most = most.entry(ngram).or_default();
                *most = count.max(*most);
            }
        }
        let mut stats = Self {
            candidate_len: candidate.len() as f64,
            reference_len: closest.unwrap_or_default() as f64,
            ..Self::default()
        };
        for (n, guesses) in stats.guesses.iter_mut().enumerate() {
            *guesses = candidate.len().saturating_sub(n) as f64;
        }
        for (ngram, count) in ngrams(&candidate) {
            let most = most.get(ngram).copied().unwrap_or_default();
            stats.correct[ngram.len() - 1] += count.min(most) as f64;
        }
        stats
    }
}

/// How often each sequence of 1 to [`MAX_N`] words is there.
pub(super) fn ngrams<'a, 'b>(words: &'b [&'a str]) -> HashMap<&'b [&'a str], usize> {
    let mut counts = HashMap::new();
    for n in 1..=MAX_N {
        for ngram in words.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}

/// BLEU-1 to BLEU-4 of all captions together, from 0 to 1.
pub fn bleu<'a>(stats: impl IntoIterator<Item = &'a BleuStats>) -> [f64; MAX_N] {
    let mut total = BleuStats::default();
    for stats in stats {
        total.candidate_len += stats.candidate_len;
        total.reference_len += stats.reference_len;
        for n in 0..MAX_N {
            total.guesses[n] += stats.guesses[n];
            total.correct[n] += stats.correct[n];
        }
    }
    let ratio = (total.candidate_len + TINY) / (total.reference_len + SMALL);
    let brevity_penalty = if ratio < 1.0 {
        (1.0 - 1.0 / ratio).exp()
    } else {
        1.0
    };
    let mut product = 1.0;
    std::array::from_fn(|n| {
        product *= (total.correct[n] + TINY) / (total.guesses[n] + SMALL);
        product.powf(1.0 / (n + 1) as f64) * brevity_penalty
    })
}
