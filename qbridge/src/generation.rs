//! How tokens are chosen.

use bridge::engine::Sampling;

/// How tokens are chosen; what is left out is as the bundle says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Tokens of the answer before it may end.
    pub min_tokens: Option<usize>,
    /// Sampling temperature; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: Option<f32>,
    /// Drop tokens below this fraction of the likeliest one's probability; 0 drops none.
    pub min_p: Option<f32>,
    /// Penalty of tokens that are there already; 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Seed of the sampling, for answers that can be repeated; drawn anew where there is none.
    pub seed: Option<u64>,
    /// Beams of a beam search; 1 is none. [`ModelOptions::num_beams`](crate::ModelOptions::num_beams) makes room for them.
    pub num_beams: Option<usize>,
    /// Power of the length that beams' scores are divided by: below 0 favours short answers.
    pub length_penalty: Option<f32>,
}

impl Generation {
    /// The whole of it, where `defaults` are the bundle's.
    pub(crate) fn sampling(&self, defaults: Sampling) -> Sampling {
        let mut sampling = Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            seed: self.seed,
            min_tokens: self.min_tokens.unwrap_or(defaults.min_tokens),
            num_beams: self.num_beams.unwrap_or(defaults.num_beams),
            length_penalty: self.length_penalty.unwrap_or(defaults.length_penalty),
            ..defaults
        };
        sampling.prefer_named(self.temperature.is_some(), self.num_beams.is_some());
        sampling
    }
}
