//! POPE (Li et al. 2023, arXiv:2305.10355): does a model say that there is what there is not?
//! As `evaluate.py` of AoiDragon/POPE counts.

/// Whether an answer counts as yes: its first sentence has no `No`, `no` or `not`.
pub fn is_yes(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or_default();
    let sentence = sentence.replace(',', "");
    !sentence
        .split(' ')
        .any(|word| ["No", "not", "no"].contains(&word))
}

/// Answers by what was said and what is true.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Said yes, and there is.
    pub true_positives: u64,
    /// Said yes, and there is not.
    pub false_positives: u64,
    /// Said no, and there is not.
    pub true_negatives: u64,
    /// Said no, and there is.
    pub false_negatives: u64,
}

impl Counts {
    /// Counts one answer.
    pub fn add(&mut self, said: bool, is_true: bool) {
        let counter = match (said, is_true) {
            (true, true) => &mut self.true_positives,
            (true, false) => &mut self.false_positives,
            (false, false) => &mut self.true_negatives,
            (false, true) => &mut self.false_negatives,
        };
        *counter += 1;
    }

    /// Accuracy, precision, recall, F1 and the part of yes among the answers, each from 0 to 1; none where
    /// nothing is there to divide by. F1 is 0 where precision or recall is.
    pub fn scores(&self) -> [Option<f64>; 5] {
        let ratio = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
        let [tp, fp, tn, fn_] = [
            self.true_positives,
            self.false_positives,
            self.true_negatives,
            self.false_negatives,
        ]
        .map(|count| count as f64);
        let all = tp + fp + tn + fn_;
        [
            ratio(tp + tn, all),
            ratio(tp, tp + fp),
            ratio(tp, tp + fn_),
            ratio(2.0 * tp, 2.0 * tp + fp + fn_),
            ratio(tp + fp, all),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_divided_is_no_score() {
        let mut counts = Counts::default();
        assert_eq!(counts.scores(), [None; 5]);
        counts.add(false, false);
        let [accuracy, precision, recall, f1, yes] = counts.scores();
        assert_eq!((accuracy, yes), (Some(1.0), Some(0.0)));
        assert_eq!((precision, recall, f1), (None, None, None));
        counts.add(false, true);
        let scores = [Some(0.5), None, Some(0.0), Some(0.0), Some(0.0)];
        assert_eq!(counts.scores(), scores);
    }
}
