//! ROUGE-L (Lin 2004) as `pycocoevalcap/rouge/rouge.py` has it.

use super::Pair;

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// F-score, from 0 to 1, of the longest common subsequence of words: the best precision over the references
/// with the best recall.
pub fn rouge_l(pair: &Pair) -> f64 {
    // Split at single spaces, so that a caption without words is one empty word, as it is in the scorer.
    let split =
        |caption: &'_ str| -> Vec<String> { caption.split(' ').map(str::to_owned).collect() };
    let candidate = split(&pair.candidate);
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in &pair.references {
        let reference = split(reference);
        let common = longest_common_subsequence(&candidate, &reference) as f64;
        precision = precision.max(common / candidate.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA.powi(2)) * precision * recall / (recall + BETA.powi(2) * precision)
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}
