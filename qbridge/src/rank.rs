//! Which of some given answers is the likeliest.

use bridge::event::{Event, TokenLogprobs};
use tokio::sync::mpsc::Receiver;

use crate::{Error, Result};

/// A given answer with what the model makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The answer.
    pub text: String,
    /// Where it stood among those given, from 0.
    pub index: usize,
    /// Natural logarithm of the probability that the model answers exactly this: the sum over its tokens, the one that
    /// ends an answer included.
    pub logprob: f64,
    /// How many tokens that is.
    pub tokens: usize,
}

impl Candidate {
    /// The mean over the tokens, for answers of different lengths: the sum favours short ones.
    pub fn mean_logprob(&self) -> f64 {
        self.logprob / self.tokens as f64
    }
}

/// By what answers are ranked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ranking {
    /// The logarithm of their probability, which is the sum over their tokens: a longer answer is less probable. So ranks
    /// `predict_class` of LAVIS (`blip2_t5_instruct.py`, `blip2_vicuna_instruct.py`).
    #[default]
    Sum,
    /// The mean over their tokens, which does not favour short answers.
    Mean,
}

impl Ranking {
    /// What answers are compared by.
    pub fn score(self, candidate: &Candidate) -> f64 {
        match self {
            Ranking::Sum => candidate.logprob,
            Ranking::Mean => candidate.mean_logprob(),
        }
    }

    /// Puts the best first, equals as they were, and returns a probability for each: the softmax of the scores. Of
    /// [`Ranking::Sum`] that is how probable each answer is where it must be one of these.
    pub fn rank(self, candidates: &mut [Candidate]) -> Vec<f64> {
        candidates.sort_by(|a, b| self.score(b).total_cmp(&self.score(a)));
        let scores: Vec<f64> = candidates.iter().map(|each| self.score(each)).collect();
        softmax(&scores)
    }
}

/// The first of the scores is the greatest.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let Some(&best) = scores.first() else {
        return Vec::new();
    };
    // Where none is possible, none is better than another.
    let weight = |&score: &f64| match best.is_finite() {
        true => (score - best).exp(),
        false => 1.0,
    };
    let weights: Vec<f64> = scores.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Reads the scores of `texts`, the first of which stands at `first` among all.
pub(crate) async fn candidates(
    mut events: Receiver<Event>,
    texts: &[String],
    first: usize,
) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = texts
        .iter()
        .zip(first..)
        .map(|(text, index)| Candidate {
            text: text.clone(),
            index,
            logprob: 0.0,
            tokens: 0,
        })
        .collect();
    let mut add = |choice: usize, logprobs: Vec<TokenLogprobs>| {
        if let Some(candidate) = found.get_mut(choice) {
            candidate.tokens += logprobs.len();
            candidate.logprob += (logprobs.iter())
                .map(|token| f64::from(token.token.logprob))
                .sum::<f64>();
        }
    };
    let mut open = texts.len();
    while open > 0 {
        match events.recv().await {
            Some(Event::Token {
                choice, logprobs, ..
            }) => add(choice, logprobs),
            Some(Event::Done(summary)) => {
                add(summary.choice, summary.logprobs);
                open -= 1;
            }
            Some(Event::Error(error)) => return Err(error),
            None => return Err(Error::Stopped),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        let candidate = |index, text: &str, logprob, tokens| Candidate {
            text: text.to_owned(),
            index,
            logprob,
            tokens,
        };
        vec![
            candidate(0, "a red bicycle", -3.0, 6),
            candidate(1, "no", -2.0, 2),
            candidate(2, "impossible", f64::NEG_INFINITY, 3),
        ]
    }

    #[test]
    fn the_sum_favours_short_answers_and_the_mean_does_not() {
        for (ranking, order) in [(Ranking::Sum, [1, 0, 2]), (Ranking::Mean, [0, 1, 2])] {
            let mut candidates = candidates();
            let probabilities = ranking.rank(&mut candidates);
            let found: Vec<usize> = candidates.iter().map(|each| each.index).collect();
            assert_eq!(found, order);
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert_eq!(probabilities[2], 0.0);
        }
        let odds = Ranking::Sum.rank(&mut candidates());
        assert!((odds[0] / odds[1] - 1f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn what_is_all_impossible_is_equally_so() {
        let mut two = vec![candidates()[2].clone(), candidates()[2].clone()];
        assert_eq!(Ranking::Sum.rank(&mut two), [0.5, 0.5]);
        assert!(Ranking::Sum.rank(&mut []).is_empty());
    }
}
