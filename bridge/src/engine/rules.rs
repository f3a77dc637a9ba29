//! What a request forbids, discourages or favours, applied to a row of scores.

use crate::constraint::Allowed;

/// Changes to a row of scores, be they logits or log-probabilities, as the logits
/// processors of transformers make them, in their order; a bias comes before all.
#[derive(Debug, Default)]
pub struct Rules {
    /// Added to the scores of tokens.
    pub logit_bias: Vec<(i32, f32)>,
    /// Divides the positive scores of tokens that the prompt or the answer holds
    /// and multiplies the negative ones; 1 is off.
    pub repetition_penalty: f32,
    /// Tokens that count as if the answer held them: the prompt's, in any order.
    pub prompt_ids: Vec<i32>,
    /// Tokens of an answer before one of `ends` may come.
    pub min_tokens: usize,
    /// Tokens that end an answer.
    pub ends: Vec<i32>,
}

impl Rules {
    /// Whether [`Rules::apply`] changes the scores of what follows `n_tokens`
    /// tokens of an answer.
    pub fn apply_after(&self, n_tokens: usize) -> bool {
        self.repetition_penalty != 1.0 || n_tokens < self.min_tokens || !self.logit_bias.is_empty()
    }

    /// Changes the scores `[n_vocab]` of what follows the tokens `answer`, where only
    /// what is `allowed` may. An answer that must end may do so before `min_tokens`.
    pub fn apply(&self, answer: &[i32], allowed: Option<&Allowed>, scores: &mut [f32]) {
        for &(id, bias) in &self.logit_bias {
            if let Some(score) = score(scores, id) {
                *score += bias;
            }
        }
        if self.repetition_penalty != 1.0 {
            let mut seen: Vec<i32> = self.prompt_ids.iter().chain(answer).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(score) = score(scores, id) {
                    if *score < 0.0 {
                        *score *= self.repetition_penalty;
                    } else {
                        *score /= self.repetition_penalty;
                    }
                }
            }
        }
        if answer.len() < self.min_tokens && !allowed.is_some_and(Allowed::must_end) {
            for &id in &self.ends {
                if let Some(score) = score(scores, id) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(allowed) = allowed {
            allowed.apply(&self.ends, scores);
        }
    }
}

fn score(scores: &mut [f32], id: i32) -> Option<&mut f32> {
    usize::try_from(id).ok().and_then(|id| scores.get_mut(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_tokens_lose_once_each_whatever_their_sign() {
        let rules = Rules {
            repetition_penalty: 2.0,
            prompt_ids: vec![0, 1, 0],
            ..Rules::default()
        };
        let mut scores = [4.0, -4.0, 3.0, -3.0, 1.0];
        rules.apply(&[3, 3, 1], None, &mut scores);
        assert_eq!(scores, [2.0, -8.0, 3.0, -6.0, 1.0]);
    }

    #[test]
    fn a_bias_is_added_before_the_penalty() {
        let rules = Rules {
            repetition_penalty: 2.0,
            prompt_ids: vec![0],
            logit_bias: vec![(0, -2.0), (2, 100.0), (99, 1.0)],
            ..Rules::default()
        };
        let mut scores = [1.0, 1.0, 1.0];
        assert!(rules.apply_after(0));
        rules.apply(&[], None, &mut scores);
        assert_eq!(scores, [-2.0, 1.0, 101.0]);
    }

    #[test]
    fn ends_are_forbidden_before_min_tokens() {
        let rules = Rules {
            repetition_penalty: 1.0,
            min_tokens: 2,
            ends: vec![0, 2, 99],
            ..Rules::default()
        };
        for (answer, expected) in [
            (vec![], [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]),
            (vec![5], [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]),
            (vec![5, 6], [1.0; 3]),
        ] {
            let mut scores = [1.0; 3];
            assert_eq!(rules.apply_after(answer.len()), answer.len() < 2);
            rules.apply(&answer, None, &mut scores);
            assert_eq!(scores, expected);
        }
    }
}
