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

    /// Accuracy, precision, recall, F1 and the part of yes among the answers, each from 0 to 1; 0 where
    /// nothing is there to divide by.
    pub fn scores(&self) -> [f64; 5] {
        let ratio = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
        let [tp, fp, tn, fn_] = [
            self.true_positives,
            self.false_positives,
            self.true_negatives,
            self.false_negatives,
        ]
        .map(|count| count as f64);
        let all = tp + fp + tn + fn_;
        let (precision, recall) = (ratio(tp, tp + fp), ratio(tp, tp + fn_));
        [
            ratio(tp + tn, all),
            precision,
            recall,
            ratio(2.0 * precision * recall, precision + recall),
            ratio(tp + fp, all),
        ]
    }
}
