//! From logits to a token.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use crate::{Error, Result};

/// Tokens that the frequency and presence penalties look back on, prompt included,
/// as in llama.cpp's server.
pub const PENALTY_WINDOW: usize = 64;

/// How tokens are chosen. First come the repetition penalty and `min_tokens`, as in
/// transformers; then llama.cpp's steps in the order of its server: penalties, top-k,
/// top-p, min-p, temperature, draw. Beams come without the latter.
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
    /// Divides the positive logits of tokens that the prompt's text or the answer
    /// holds and multiplies the negative ones (with beams: the log-probabilities,
    /// which are negative); 1 is off. An encoder's input does not count, nor does
    /// MiniGPT-4's prompt.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time it was seen lately; 0 is off.
    pub frequency_penalty: f32,
    /// Taken off the logit of each token seen lately; 0 is off.
    pub presence_penalty: f32,
    /// The same seed and the same logits give the same text; `None` draws anew each
    /// time. llama.cpp's generator takes 32 bits: the upper half is folded onto the
    /// lower by exclusive or, so seeds below 2^32 - 1 mean what they mean there.
    pub seed: Option<u64>,
    /// Tokens of an answer before an end-of-generation token or a stop id may come.
    pub min_tokens: usize,
    /// Answers to one prompt, each drawn by itself; with beams the best, as many as
    /// there are beams at most. Each takes one of the engine's sequences.
    pub n: usize,
    /// Beams of a beam search; 1 is none. More need `temperature` 0, frequency and
    /// presence penalties of 0, and as many of the engine's sequences.
    pub num_beams: usize,
    /// The sum of an answer's log-probabilities is divided by its length to this
    /// power before beams are compared: below 0 favours short answers, above 0 long
    /// ones. Without beams it means nothing.
    pub length_penalty: f32,
}

impl Default for Sampling {
    /// The likeliest token, always.
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            min_tokens: 0,
            n: 1,
            num_beams: 1,
            length_penalty: 1.0,
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
        } else if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            format!(
                "repetition_penalty is {}, it must be above 0",
                self.repetition_penalty
            )
        } else if !self.frequency_penalty.is_finite() {
            format!("frequency_penalty is {}", self.frequency_penalty)
        } else if !self.presence_penalty.is_finite() {
            format!("presence_penalty is {}", self.presence_penalty)
        } else if self.n == 0 {
            "n is 0, it must be at least 1".to_owned()
        } else if self.num_beams > 1 && self.n > self.num_beams {
            format!(
                "n is {}, it must be at most num_beams, {}",
                self.n, self.num_beams
            )
        } else if self.num_beams == 0 {
            "num_beams is 0, it must be at least 1".to_owned()
        } else if !self.length_penalty.is_finite() {
            format!("length_penalty is {}", self.length_penalty)
        } else if self.num_beams > 1 && self.temperature > 0.0 {
            format!(
                "temperature is {}, and num_beams {}: beams are not drawn, they need temperature 0",
                self.temperature, self.num_beams
            )
        } else if self.num_beams > 1 && self.penalizes() {
            format!(
                "frequency_penalty is {} and presence_penalty {}: with num_beams {} there is \
                 repetition_penalty instead",
                self.frequency_penalty, self.presence_penalty, self.num_beams
            )
        } else {
            return Ok(());
        };
        Err(Error::InvalidRequest { reason: problem })
    }

    /// Lets what a request names win over a default that contradicts it: beams over
    /// a default temperature, a temperature over default beams.
    pub fn prefer_named(&mut self, names_temperature: bool, names_num_beams: bool) {
        match (names_temperature, names_num_beams) {
            (true, false) if self.temperature > 0.0 => self.num_beams = 1,
            (false, true) if self.num_beams > 1 => self.temperature = 0.0,
            _ => {}
        }
    }

    /// The engine's sequences that a request takes.
    pub(super) fn sequences(&self) -> usize {
        self.n.max(self.num_beams)
    }

    fn penalizes(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
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
        Self::of_choice(sampling, 0, n_vocab)
    }

    /// Like [`Sampler::new`], for one of several answers to a prompt. The first draws
    /// as a single one would, the others by seeds of their own that follow from its.
    pub fn of_choice(sampling: &Sampling, choice: usize, n_vocab: usize) -> Self {
        let penalizes = sampling.penalizes();
        let mut steps = Vec::new();
        if penalizes {
            steps.push(LlamaSampler::penalties(
                i32::try_from(n_vocab).unwrap_or(i32::MAX),
                PENALTY_WINDOW as i32,
                1.0,
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
                sampling
                    .seed
                    .map_or(RANDOM_SEED, |seed| fold_seed(seed_of(seed, choice))),
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
        let likeliest = likeliest(logits)?;
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

/// Seeds of answers lie far apart, so that those of neighbouring seeds differ too.
fn seed_of(seed: u64, choice: usize) -> u64 {
    seed.wrapping_add((choice as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn fold_seed(seed: u64) -> u32 {
    let folded = (seed ^ (seed >> 32)) as u32;
    if folded == RANDOM_SEED { 0 } else { folded }
}

/// Id of the largest logit, the first of equals.
///
/// # Errors
/// [`Error::Decode`] when any is NaN or the largest is infinite.
pub(super) fn likeliest(logits: &[f32]) -> Result<i32> {
    // Largest values side by side, which the compiler turns into vector code: with one
    // running maximum and its place this took 60 us for a vocabulary of 49152.
    const LANES: usize = 16;
    let (mut best, mut nan) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let mut chunks = logits.chunks_exact(LANES);
    let mut compare = |chunk: &[f32]| {
        for ((best, nan), &logit) in best.iter_mut().zip(&mut nan).zip(chunk) {
            *nan |= u32::from(logit.is_nan());
            *best = if logit > *best { logit } else { *best };
        }
    };
    (&mut chunks).for_each(&mut compare);
    compare(chunks.remainder());
    let best = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let place = logits.iter().position(|&logit| logit == best);
    match place.and_then(|place| i32::try_from(place).ok()) {
        Some(id) if best.is_finite() && nan.iter().all(|&nan| nan == 0) => Ok(id),
        _ => Err(Error::Decode {
            reason: "the language model's logits are not numbers".to_owned(),
        }),
    }
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
        assert_eq!(likeliest(&[2.0, 5.0, 5.0]).unwrap(), 1);
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
    fn answers_to_one_prompt_draw_differently() {
        let sampling = Sampling {
            temperature: 1.5,
            seed: Some(7),
            ..Sampling::default()
        };
        let of_choice = |choice| {
            let mut sampler = Sampler::of_choice(&sampling, choice, LOGITS.len());
            let mut candidates = Candidates::new(LOGITS.len());
            let draw = |_| sampler.sample(&LOGITS, &mut candidates).unwrap();
            (0..64).map(draw).collect::<Vec<i32>>()
        };
        assert_eq!(of_choice(0), draw(sampling, 64));
        assert_eq!(of_choice(2), of_choice(2));
        assert!(of_choice(0) != of_choice(1) && of_choice(1) != of_choice(2));
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
    fn what_a_request_names_wins_over_a_default() {
        let default = |temperature, num_beams| Sampling {
            temperature,
            num_beams,
            ..Sampling::default()
        };
        for (mut sampling, named, expected) in [
            (default(0.7, 5), (true, false), (0.7, 1)),
            (default(0.7, 5), (false, true), (0.0, 5)),
            (default(0.0, 5), (true, false), (0.0, 5)),
            (default(0.7, 1), (false, true), (0.7, 1)),
            (default(0.0, 5), (false, false), (0.0, 5)),
            (default(0.7, 5), (true, true), (0.7, 5)),
        ] {
            sampling.prefer_named(named.0, named.1);
            assert_eq!((sampling.temperature, sampling.num_beams), expected);
        }
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
                    repetition_penalty: 0.0,
                    ..base
                },
                "repetition_penalty",
            ),
            (Sampling { n: 0, ..base }, "n is 0"),
            (
                Sampling {
                    n: 3,
                    num_beams: 2,
                    ..base
                },
                "n is 3",
            ),
            (
                Sampling {
                    num_beams: 0,
                    ..base
                },
                "num_beams",
            ),
            (
                Sampling {
                    num_beams: 2,
                    temperature: 0.5,
                    ..base
                },
                "temperature",
            ),
            (
                Sampling {
                    num_beams: 2,
                    presence_penalty: 0.5,
                    ..base
                },
                "presence_penalty",
            ),
            (
                Sampling {
                    length_penalty: f32::NAN,
                    ..base
                },
                "length_penalty",
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
