//! Beam search over rows of log-probabilities, without a language model.
//!
//! The algorithm is that of `generate(num_beams=n, do_sample=False,
//! early_stopping=False)` in transformers 5.23 (`generation/utils.py`,
//! `_beam_search`): each step keeps the best continuations of all beams; of
//! these, the first `n` may end and are then ranked by their log-probability
//! divided by `length ** length_penalty`; the best `n` that go on are the next
//! beams; and the search ends once the best beam, ranked as if it ended now, is no
//! better than the worst of `n` ended ones.

/// A beam search for the answer of one prompt.
#[derive(Debug)]
pub struct BeamSearch {
    num_beams: usize,
    length_penalty: f32,
    max_tokens: usize,
    /// Continuations kept of a step.
    n_keep: usize,
    /// Tokens of every beam.
    n_tokens: usize,
    /// Best first; one beam without tokens before the first step.
    running: Vec<Hypothesis>,
    /// Best first, with the length penalty in their scores.
    finished: Vec<Hypothesis>,
    /// Continuations of the step under way, best first.
    candidates: Vec<Candidate>,
}

/// A beginning of an answer, or a whole one.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens; of a whole answer, the one that ended it included.
    pub ids: Vec<i32>,
    /// Sum of the log-probabilities of its tokens.
    pub score: f32,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    beam: usize,
    id: i32,
    score: f32,
}

/// What follows from a step of a [`BeamSearch`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The beam of the step before that each beam continues.
    Continue(Vec<usize>),
    /// The search is over.
    Done,
}

impl BeamSearch {
    /// A search with `num_beams` beams for at most `max_tokens` tokens, both at
    /// least 1, where `n_ends` tokens of the vocabulary end an answer.
    pub fn new(num_beams: usize, length_penalty: f32, max_tokens: usize, n_ends: usize) -> Self {
        // Enough for num_beams to go on even if all ends of all beams are among them.
        let n_keep = num_beams.saturating_mul(n_ends.saturating_add(1).max(2));
        BeamSearch {
            num_beams,
            length_penalty,
            max_tokens,
            n_keep,
            n_tokens: 0,
            running: vec![Hypothesis {
                ids: Vec::new(),
                score: 0.0,
            }],
            finished: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// The beams, best first. Each wants its [`BeamSearch::offer`] before the next
    /// [`BeamSearch::step`].
    pub fn running(&self) -> &[Hypothesis] {
        &self.running
    }

    /// The answers found so far, best first, with the length penalty in their scores.
    pub fn finished(&self) -> &[Hypothesis] {
        &self.finished
    }

    /// The mean log-probability of the tokens of a finished answer.
    pub fn mean_logprob(&self, finished: &Hypothesis) -> f32 {
        let n_tokens = finished.ids.len() as f64;
        let sum = f64::from(finished.score) * n_tokens.powf(f64::from(self.length_penalty));
        (sum / n_tokens) as f32
    }

    /// Takes the log-probabilities `[n_vocab]` of what follows on `beam`.
    pub fn offer(&mut self, beam: usize, log_probs: &[f32]) {
        let Some(hypothesis) = self.running.get(beam) else {
            return;
        };
        for (&log_prob, id) in log_probs.iter().zip(0..) {
            let score = hypothesis.score + log_prob;
            let is_full = self.candidates.len() == self.n_keep;
            let fits = match self.candidates.last() {
                Some(worst) if is_full => score > worst.score,
                _ => score > f32::NEG_INFINITY,
            };
            if fits {
                if is_full {
                    self.candidates.pop();
                }
                let at = self.candidates.partition_point(|c| c.score >= score);
                self.candidates.insert(at, Candidate { beam, id, score });
            }
        }
    }

    /// Chooses among what was offered. `ends(beam, id)` says whether token `id`
    /// ends the answer that the tokens `beam` begin.
    pub fn step(&mut self, ends: impl Fn(&[i32], i32) -> bool) -> Step {
        self.n_tokens += 1;
        let penalty = (self.n_tokens as f64).powf(f64::from(self.length_penalty)) as f32;
        let mut parents = Vec::with_capacity(self.num_beams);
        let mut next = Vec::with_capacity(self.num_beams);
        for (rank, candidate) in self.candidates.drain(..).enumerate() {
            if next.len() == self.num_beams && rank >= self.num_beams {
                break;
            }
            let parent = &self.running[candidate.beam].ids;
            let is_end = self.n_tokens >= self.max_tokens || ends(parent, candidate.id);
            let ids = || [parent.as_slice(), &[candidate.id]].concat();
            if is_end && rank < self.num_beams {
                let score = candidate.score / penalty;
                let at = self.finished.partition_point(|f| f.score >= score);
                let ids = ids();
                self.finished.insert(at, Hypothesis { ids, score });
            } else if !is_end && next.len() < self.num_beams {
                parents.push(candidate.beam);
                next.push(Hypothesis {
                    ids: ids(),
                    score: candidate.score,
                });
            }
        }
        self.finished.truncate(self.num_beams);
        self.running = next;
        let Some(best) = self.running.first() else {
            return Step::Done;
        };
        let worst = self.finished.last();
        if self.finished.len() == self.num_beams
            && worst.is_some_and(|worst| best.score / penalty <= worst.score)
        {
            return Step::Done;
        }
        Step::Continue(parents)
    }
}

/// Turns logits into log-probabilities in place; `-inf` stays.
pub fn log_softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = values.iter().map(|&x| f64::from((x - max).exp())).sum();
    let log_sum = sum.ln() as f32;
    for value in values {
        *value = (*value - max) - log_sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i32 = 0;

    /// Log-probabilities after any beginning, of a little language over three tokens.
    fn log_probs(ids: &[i32]) -> Vec<f32> {
        let weights: [f32; 4] = match ids.last() {
            None => [0.1, 0.5, 0.4, 0.0],
            Some(1) => [0.1, 0.3, 0.3, 0.3],
            Some(2) => [0.9, 0.05, 0.05, 0.0],
            Some(_) => [0.25; 4],
        };
        weights.iter().map(|weight| weight.ln()).collect()
    }

    fn finished(num_beams: usize, length_penalty: f32, max_tokens: usize) -> BeamSearch {
        let mut search = BeamSearch::new(num_beams, length_penalty, max_tokens, 1);
        for _ in 0..max_tokens {
            for beam in 0..search.running().len() {
                let row = log_probs(&search.running()[beam].ids);
                search.offer(beam, &row);
            }
            if search.step(|_, id| id == END) == Step::Done {
                return search;
            }
        }
        panic!("no end after max_tokens");
    }

    fn search(num_beams: usize, length_penalty: f32, max_tokens: usize) -> Vec<Hypothesis> {
        finished(num_beams, length_penalty, max_tokens)
            .finished()
            .to_vec()
    }

    #[test]
    fn one_beam_is_greedy_and_two_see_further() {
        assert_eq!(search(1, 1.0, 2)[0].ids, [1, 1]);
        let best = &search(2, 0.0, 8)[0];
        assert_eq!(best.ids, [2, END]);
        assert!((best.score - (0.4f32 * 0.9).ln()).abs() < 1e-6);
    }

    #[test]
    fn the_length_penalty_divides_by_a_power_of_the_length() {
        for length_penalty in [-1.0, 0.0, 0.5, 2.0] {
            let search = finished(2, length_penalty, 8);
            let best = &search.finished()[0];
            let sum: f32 = (0..best.ids.len())
                .map(|n| log_probs(&best.ids[..n])[best.ids[n] as usize])
                .sum();
            let mean = sum / best.ids.len() as f32;
            assert!((search.mean_logprob(best) - mean).abs() < 1e-5, "{best:?}");
            let expected = sum / (best.ids.len() as f32).powf(length_penalty);
            assert!((best.score - expected).abs() < 1e-5, "{best:?}");
        }
        // Short answers win where length costs, long ones where it pays.
        let search = |length_penalty| search(3, length_penalty, 8);
        assert!(search(-1.0)[0].ids.len() < search(4.0)[0].ids.len());
    }

    #[test]
    fn all_beams_end_at_the_last_token() {
        let found = search(3, 1.0, 1);
        let ids: Vec<&[i32]> = found.iter().map(|found| found.ids.as_slice()).collect();
        assert_eq!(ids, [[1].as_slice(), &[2], &[END]]);
    }

    #[test]
    fn only_the_first_of_the_candidates_may_end() {
        let mut search = BeamSearch::new(1, 1.0, 8, 1);
        search.offer(0, &[0.4f32.ln(), 0.6f32.ln()]);
        // The end is second best: it is neither an answer nor a beam.
        assert_eq!(search.step(|_, id| id == END), Step::Continue(vec![0]));
        assert!(search.finished().is_empty());
        assert_eq!(search.running()[0].ids, [1]);
    }

    #[test]
    fn log_softmax_sums_to_one() {
        let mut values = [1.0, -2.0, 1e4, 9999.0, f32::NEG_INFINITY];
        log_softmax(&mut values);
        let sum: f32 = values.iter().map(|value| value.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((values[2] - values[3] - 1.0).abs() < 1e-6);
        assert_eq!(values[4], f32::NEG_INFINITY);
    }
}
