//! From logits to a token.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use crate::{Error, Result};

/// Tokens that the penalties look back on, prompt included, as in llama.cpp's server.
pub const PENALTY_WINDOW: usize = 64;

/// How tokens are drawn. The steps are llama.cpp's, in the order of its server:
/// penalties, top-k, top-p, min-p, temperature, draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Flattens (above 1) or sharpens (below 1) the distribution; 0 always takes
    /// the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this fraction of the likeliest one's probability; 0 drops none.
    pub min_p: f32,
    /// Divides the positive logits of tokens seen lately and multiplies the
    /// negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// Taken off a token's logit for each time it was seen lately; 0 is off.
    pub frequency_penalty: f32,
    /// Taken off the logit of each token seen lately; 0 is off.
    pub presence_penalty: f32,
    /// The same seed and the same logits give the same text; `None` draws anew each
    /// time. llama.cpp's generator takes 32 bits: the upper half is folded onto the
    /// lower by exclusive or, so seeds below 2^32 - 1 mean what they mean there.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// The likeliest token, always.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
        }
    }
}

impl Sampling {
    /// # Errors
    /// [`Error::InvalidRequest`] naming the value that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let problem = if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            format!("temperature is {}, it must be 0 or more", self.temperature)
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            format!("top_p is {}, it must be above 0 and at most 1", self.top_p)
        } else if !(0.0..=1.0).contains(&self.min_p) {
            format!("min_p is {}, it must be from 0 to 1", self.min_p)
        } else if !(self.repeat_penalty.is_finite() && self.repeat_penalty > 0.0) {
            format!(
                "repeat_penalty is {}, it must be above 0",
                self.repeat_penalty
            )
        } else if !self.frequency_penalty.is_finite() {
            format!("frequency_penalty is {}", self.frequency_penalty)
        } else if !self.presence_penalty.is_finite() {
            format!("presence_penalty is {}", self.presence_penalty)
        } else {
            return Ok(());
        };
        Err(Error::InvalidRequest { reason: problem })
    }

    fn penalizes(&self) -> bool {
        self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// Room for the candidates of one token, reused by all sequences of an engine.
pub struct Candidates(LlamaTokenDataArray);

impl Candidates {
    /// For rows of logits of `n_vocab` values.
    pub fn new(n_vocab: usize) -> Self {
        Candidates(LlamaTokenDataArray::new(Vec::with_capacity(n_vocab), false))
    }

    fn fill(&mut self, logits: &[f32]) -> &mut LlamaTokenDataArray {
        let array = &mut self.0;
        array.data.clear();
        array.data.extend(
            logits
                .iter()
                .zip(0..)
                .map(|(&logit, id)| LlamaTokenData::new(LlamaToken(id), logit, 0.0)),
        );
        array.selected = None;
        array.sorted = false;
        array
    }
}

/// Draws the tokens of one sequence.
pub struct Sampler {
    /// None where the likeliest token can be read off the logits as they are.
    chain: Option<LlamaSampler>,
    penalizes: bool,
}

impl Sampler {
    /// For a sequence over a vocabulary of `n_vocab` tokens.
    pub fn new(sampling: &Sampling, n_vocab: usize) -> Self {
        let penalizes = sampling.penalizes();
        let mut steps = Vec::new();
        if penalizes {
            steps.push(LlamaSampler::penalties(
                i32::try_from(n_vocab).unwrap_or(i32::MAX),
                PENALTY_WINDOW as i32,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            ));
        }
        if sampling.temperature > 0.0 {
            if sampling.top_k > 0 {
                steps.push(LlamaSampler::top_k(
                    i32::try_from(sampling.top_k).unwrap_or(i32::MAX),
                ));
            }
            if sampling.top_p < 1.0 {
                steps.push(LlamaSampler::top_p(sampling.top_p, 0));
            }
            if sampling.min_p > 0.0 {
                steps.push(LlamaSampler::min_p(sampling.min_p, 0));
            }
            if sampling.temperature != 1.0 {
                steps.push(LlamaSampler::temp(sampling.temperature));
            }
            steps.push(LlamaSampler::dist(
                sampling.seed.map_or(RANDOM_SEED, fold_seed),
            ));
        } else if penalizes {
            steps.push(LlamaSampler::greedy());
        }
        Sampler {
            chain: (!steps.is_empty()).then(|| LlamaSampler::chain(steps, true)),
            penalizes,
        }
    }

    /// Tells the penalties of a token of the prompt or of the answer.
    pub fn accept(&mut self, id: i32) {
        if self.penalizes
            && let Some(chain) = &mut self.chain
        {
            chain.accept(LlamaToken(id));
        }
    }

    /// Draws a token from a row of logits, and accepts it.
    ///
    /// # Errors
    /// [`Error::Decode`] when the logits hold NaN or nothing finite.
    pub fn sample(&mut self, logits: &[f32], candidates: &mut Candidates) -> Result<i32> {
        let likeliest = likeliest(logits).ok_or_else(|| Error::Decode {
            reason: "the language model's logits are not numbers".to_owned(),
        })?;
        let Some(chain) = &mut self.chain else {
            return Ok(likeliest);
        };
        let array = candidates.fill(logits);
        chain.apply(array);
        // The chain always ends with a step that selects.
        let id = array.selected_token().map_or(likeliest, |token| token.0);
        self.accept(id);
        Ok(id)
    }
}

/// llama.cpp's `LLAMA_DEFAULT_SEED`: a random one.
const RANDOM_SEED: u32 = u32::MAX;

fn fold_seed(seed: u64) -> u32 {
    let folded = (seed ^ (seed >> 32)) as u32;
    if folded == RANDOM_SEED { 0 } else { folded }
}

/// Id of the largest logit, the first of equals; none if any is NaN or the
/// largest is infinite.
fn likeliest(logits: &[f32]) -> Option<i32> {
    let (mut best, mut id, mut nan) = (f32::NEG_INFINITY, 0, false);
    for (&logit, i) in logits.iter().zip(0..) {
        nan |= logit.is_nan();
        if logit > best {
            (best, id) = (logit, i);
        }
    }
    (!nan && best.is_finite()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.9, -1.0, 2.0, 0.0];

    fn draw(sampling: Sampling, n: usize) -> Vec<i32> {
        let mut sampler = Sampler::new(&sampling, LOGITS.len());
        let mut candidates = Candidates::new(LOGITS.len());
        (0..n)
            .map(|_| sampler.sample(&LOGITS, &mut candidates).unwrap())
            .collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(draw(Sampling::default(), 3), [1, 1, 1]);
        assert_eq!(likeliest(&[2.0, 5.0, 5.0]), Some(1));
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        for bad in [
            [0.0, f32::NAN],
            [f32::NEG_INFINITY; 2],
            [f32::INFINITY, 0.0],
        ] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling {
                    temperature,
                    ..Sampling::default()
                };
                let sampled = Sampler::new(&sampling, 2).sample(&bad, &mut Candidates::new(2));
                assert!(sampled.is_err(), "{bad:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let with_seed = |seed| {
            let sampling = Sampling {
                temperature: 1.5,
                seed: Some(seed),
                ..Sampling::default()
            };
            draw(sampling, 64)
        };
        assert_eq!(with_seed(7), with_seed(7));
        assert_ne!(with_seed(7), with_seed(8));
        assert_ne!(
            with_seed(7),
            with_seed(7 << 32 | 9),
            "the upper half counts"
        );
        // The one value that means "random" to llama.cpp.
        let largest = u64::from(u32::MAX);
        assert_eq!(with_seed(largest), with_seed(largest));
    }

    #[test]
    fn no_seed_draws_anew() {
        let sampling = Sampling {
            temperature: 2.0,
            ..Sampling::default()
        };
        // 200 draws from six tokens: the same twice has a chance below 1e-60.
        assert_ne!(draw(sampling, 200), draw(sampling, 200));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let sampling = Sampling {
            temperature: 0.5,
            seed: Some(1),
            ..Sampling::default()
        };
        let n = 20_000;
        let drawn = draw(sampling, n);
        let total: f64 = LOGITS.iter().map(|&x| f64::from(x / 0.5).exp()).sum();
        for (id, &logit) in LOGITS.iter().enumerate() {
            let expected = f64::from(logit / 0.5).exp() / total;
            let seen = drawn.iter().filter(|&&d| d == id as i32).count() as f64 / n as f64;
            // Five standard deviations of a proportion.
            let tolerance = 5.0 * (expected * (1.0 - expected) / n as f64).sqrt();
            assert!(
                (seen - expected).abs() < tolerance,
                "{id}: {seen} against {expected}"
            );
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let hot = Sampling {
            temperature: 5.0,
            seed: Some(3),
            ..Sampling::default()
        };
        let kinds = |sampling| {
            let mut drawn = draw(sampling, 500);
            drawn.sort_unstable();
            drawn.dedup();
            drawn
        };
        assert_eq!(kinds(hot), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kinds(Sampling { top_k: 2, ..hot }), [1, 2]);
        // Probabilities before temperature: 0.39, 0.35, 0.14, 0.05, 0.02, 0.01.
        assert_eq!(kinds(Sampling { top_p: 0.6, ..hot }), [1, 2]);
        assert_eq!(kinds(Sampling { min_p: 0.3, ..hot }), [1, 2, 4]);
    }

    #[test]
    fn penalties_turn_the_likeliest_away() {
        let sampling = Sampling {
            presence_penalty: 0.5,
            ..Sampling::default()
        };
        // 1 is seen and falls to 2.5; 2 (2.9) follows and falls to 2.4; then 1 leads.
        assert_eq!(draw(sampling, 4), [1, 2, 1, 1]);
        let mut sampler = Sampler::new(&sampling, LOGITS.len());
        sampler.accept(1);
        let first = sampler.sample(&LOGITS, &mut Candidates::new(LOGITS.len()));
        assert_eq!(first.unwrap(), 2, "the prompt counts");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let base = Sampling::default();
        for (sampling, name) in [
            (
                Sampling {
                    temperature: -1.0,
                    ..base
                },
                "temperature",
            ),
            (
                Sampling {
                    temperature: f32::NAN,
                    ..base
                },
                "temperature",
            ),
            (Sampling { top_p: 0.0, ..base }, "top_p"),
            (Sampling { min_p: 1.5, ..base }, "min_p"),
            (
                Sampling {
                    repeat_penalty: 0.0,
                    ..base
                },
                "repeat_penalty",
            ),
            (
                Sampling {
                    frequency_penalty: f32::INFINITY,
                    ..base
                },
                "frequency_penalty",
            ),
            (
                Sampling {
                    presence_penalty: f32::NAN,
                    ..base
                },
                "presence_penalty",
            ),
        ] {
            let message = sampling.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert!(base.validate().is_ok());
    }
}
