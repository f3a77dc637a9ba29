//! CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) as `pycocoevalcap/cider/cider_scorer.py` has it, with
//! document frequencies of the references at hand.

use std::collections::{HashMap, HashSet};

use super::Pair;
use super::bleu::{MAX_N, ngrams};
use crate::text::words;

/// Width of the Gaussian that different lengths are punished with.
const SIGMA: f64 = 6.0;

/// A caption as weights of its n-grams.
struct Vector<'a> {
    /// By n from 1.
    weights: [HashMap<Vec<&'a str>, f64>; MAX_N],
    norms: [f64; MAX_N],
    /// Pairs of words, by which lengths are compared.
    length: f64,
}

/// The score of each caption, about 0 to 10 and 1 where people stand; the score of a test set is their mean.
pub fn cider(pairs: &[Pair]) -> Vec<f64> {
    let mut frequency: HashMap<Vec<&str>, f64> = HashMap::new();
    for pair in pairs {
        let mut seen = HashSet::new();
        for reference in &pair.references {
            let words: Vec<&str> = words(reference).collect();
            seen.extend(ngrams(&words).into_keys().map(<[&str]>::to_vec));
        }
        for ngram in seen {
            *frequency.entry(ngram).or_default() += 1.0;
        }
    }
    let log_captions = (pairs.len() as f64).ln();
    let vector = |caption| vector(caption, &frequency, log_captions);
    pairs
        .iter()
        .map(|pair| {
            let candidate = vector(&pair.candidate);
            let total: f64 = pair
                .references
                .iter()
                .map(|reference| similarity(&candidate, &vector(reference)))
                .sum();
            10.0 * total / pair.references.len().max(1) as f64
        })
        .collect()
}

fn vector<'a>(
    caption: &'a str,
    frequency: &HashMap<Vec<&str>, f64>,
    log_captions: f64,
) -> Vector<'a> {
    let words: Vec<&str> = words(caption).collect();
    let mut vector = Vector {
        weights: Default::default(),
        norms: [0.0; MAX_N],
        length: words.len().saturating_sub(1) as f64,
    };
    for (ngram, count) in ngrams(&words) {
        let seen = frequency.get(ngram).copied().unwrap_or_default();
        let weight = count as f64 * (log_captions - seen.max(1.0).ln());
        let n = ngram.len() - 1;
        vector.norms[n] += weight.powi(2);
        vector.weights[n].insert(ngram.to_vec(), weight);
    }
    vector.norms = vector.norms.map(f64::sqrt);
    vector
}

/// Mean over n of the clipped cosine similarity, less for different lengths.
fn similarity(candidate: &Vector<'_>, reference: &Vector<'_>) -> f64 {
    let difference = candidate.length - reference.length;
    let penalty = (-difference.powi(2) / (2.0 * SIGMA.powi(2))).exp();
    let similarity = |n: usize| {
        let product: f64 = candidate.weights[n]
            .iter()
            .filter_map(|(ngram, weight)| {
                let other = reference.weights[n].get(ngram)?;
                Some(weight.min(*other) * other)
            })
            .sum();
        match candidate.norms[n] * reference.norms[n] {
            0.0 => product,
            norms => product / norms,
        }
    };
    (0..MAX_N).map(similarity).sum::<f64>() / MAX_N as f64 * penalty
}
