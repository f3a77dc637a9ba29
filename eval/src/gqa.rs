//! GQA (Hudson and Manning 2019, arXiv:1902.09506) as its `eval.py` counts: an answer is right where it
//! equals the annotated one letter for letter.

use std::collections::BTreeMap;

/// Answers of a group of questions, with how often each was given.
type Histogram<'a> = BTreeMap<&'a str, f64>;

/// How far the answers that were given are from the annotated ones, over groups of questions: the chi-square
/// statistic of each group, weighted with its questions, over 100. Lower is better. `answers` are group,
/// annotated answer and given answer.
pub fn distribution<'a>(answers: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> f64 {
    let mut groups: BTreeMap<&str, (Histogram<'a>, Histogram<'a>)> = BTreeMap::new();
    for (group, gold, given) in answers {
        let (golds, givens) = groups.entry(group).or_default();
        *golds.entry(gold).or_default() += 1.0;
        *givens.entry(given).or_default() += 1.0;
    }
    let (mut sum, mut questions) = (0.0, 0.0);
    for (golds, givens) in groups.values() {
        let n: f64 = golds.values().sum();
        let chi_square: f64 = golds
            .iter()
            .map(|(answer, expected)| {
                let observed = givens.get(answer).copied().unwrap_or_default();
                (observed - expected).powi(2) / expected
            })
            .sum();
        sum += chi_square * n;
        questions += n;
    }
    if questions == 0.0 {
        return 0.0;
    }
    sum / questions / 100.0
}
