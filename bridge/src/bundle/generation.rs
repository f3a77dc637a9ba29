//! `[generation]` of a manifest: what a request gets where it says nothing.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::engine::Sampling;
use crate::llama::MAX_SEQUENCES;
use crate::{Error, Result};

/// The checkpoint's file that these are read from.
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";

/// Settings of `generation_config.json` that change answers and have no counterpart.
const UNSUPPORTED: [&str; 8] = [
    "bad_words_ids",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "forced_bos_token_id",
    "no_repeat_ngram_size",
    "suppress_tokens",
    "typical_p",
];

/// What a request gets where it says nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationDefaults {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Tokens of an answer before it may end.
    pub min_tokens: usize,
    /// Beams of a beam search; 1 is none.
    pub num_beams: usize,
    /// Power of the length that beams' scores are divided by.
    pub length_penalty: f32,
    /// Penalty of tokens that are there already; 1 is off.
    pub repetition_penalty: f32,
    /// Whether that penalty counts the prompt's tokens beside the answer's. LAVIS and MiniGPT-4 give `generate`
    /// embeddings alone, which knows no prompt then.
    pub penalize_prompt: bool,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens below this fraction of the likeliest one's probability; 0 drops none.
    pub min_p: f32,
}

impl Default for GenerationDefaults {
    fn default() -> Self {
        let sampling = Sampling::default();
        Self {
            max_tokens: 256,
            min_tokens: sampling.min_tokens,
            num_beams: sampling.num_beams,
            length_penalty: sampling.length_penalty,
            repetition_penalty: sampling.repetition_penalty,
            penalize_prompt: true,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
        }
    }
}

/// What is read of `generation_config.json`. Token ids are not: those published with
/// InstructBLIP-Vicuna are wrong, and the prompt layout names the right ones. Nor are
/// `max_length` and `min_length`, which count the prompt in some versions of
/// transformers and not in others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    max_new_tokens: Option<usize>,
    min_new_tokens: Option<usize>,
    num_beams: Option<usize>,
    length_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

impl GenerationDefaults {
    /// What `generation_config.json` of a checkpoint directory says, where there is
    /// one. Sampling values count only with `do_sample`, as in transformers.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON of this shape, or holds a value out of
    /// its range.
    pub fn from_checkpoint(dir: &Path) -> Result<Self> {
        let path = dir.join(GENERATION_CONFIG);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(Error::Io { path, source }),
        };
        let invalid = |reason: String| Error::Manifest {
            path: path.clone(),
            reason,
        };
        let config: GenerationConfig =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        for name in UNSUPPORTED {
            if let Some(value) = config.others.get(name).filter(|value| !value.is_null()) {
                tracing::warn!(
                    "{}: {name} = {value} is left out: it has no counterpart here",
                    path.display()
                );
            }
        }
        let default = Self::default();
        let mut defaults = Self {
            max_tokens: config.max_new_tokens.unwrap_or(default.max_tokens),
            min_tokens: config.min_new_tokens.unwrap_or(default.min_tokens),
            num_beams: config.num_beams.unwrap_or(default.num_beams),
            length_penalty: config.length_penalty.unwrap_or(default.length_penalty),
            repetition_penalty: config
                .repetition_penalty
                .unwrap_or(default.repetition_penalty),
            ..default
        };
        if config.do_sample == Some(true) {
            // transformers' own defaults of a sampled answer.
            defaults.temperature = config.temperature.unwrap_or(1.0);
            defaults.top_k = config.top_k.unwrap_or(50);
            defaults.top_p = config.top_p.unwrap_or(1.0);
            defaults.min_p = config.min_p.unwrap_or(0.0);
        }
        defaults.check().map_err(invalid)?;
        Ok(defaults)
    }

    /// The values as a request takes them.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            min_tokens: self.min_tokens,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            ..Sampling::default()
        }
    }

    /// Refuses values out of their range.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.max_tokens == 0 {
            return Err("max_tokens is 0, it must be at least 1".to_owned());
        }
        if self.num_beams > MAX_SEQUENCES {
            return Err(format!(
                "num_beams is {}, at most {MAX_SEQUENCES} are possible",
                self.num_beams
            ));
        }
        self.sampling()
            .validate()
            .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GenerationDefaults> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(GENERATION_CONFIG), json).unwrap();
        GenerationDefaults::from_checkpoint(dir.path())
    }

    #[test]
    fn a_checkpoint_without_the_file_has_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let defaults = GenerationDefaults::from_checkpoint(dir.path()).unwrap();
        assert_eq!(defaults, GenerationDefaults::default());
    }

    #[test]
    fn ids_and_ambiguous_lengths_are_not_taken() {
        // As published with InstructBLIP-Vicuna, ids and all.
        let defaults = read(
            r#"{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 32000, "max_length": 256,
                "min_length": 1, "num_beams": 5, "length_penalty": -1.0, "top_p": 0.9,
                "repetition_penalty": 1.5, "min_new_tokens": 2}"#,
        );
        let expected = GenerationDefaults {
            num_beams: 5,
            length_penalty: -1.0,
            repetition_penalty: 1.5,
            min_tokens: 2,
            ..GenerationDefaults::default()
        };
        assert_eq!(defaults.unwrap(), expected);
    }

    #[test]
    fn sampling_counts_where_it_is_asked_for() {
        let sampled = read(r#"{"do_sample": true, "temperature": 0.6, "max_new_tokens": 30}"#);
        let sampled = sampled.unwrap();
        assert_eq!((sampled.temperature, sampled.top_k), (0.6, 50));
        assert_eq!(sampled.max_tokens, 30);
        let greedy = read(r#"{"temperature": 0.6, "top_k": 3}"#).unwrap();
        assert_eq!((greedy.temperature, greedy.top_k), (0.0, 0));
    }

    #[test]
    fn values_out_of_range_name_the_file_and_the_field() {
        for (json, name) in [
            (r#"{"num_beams": 0}"#, "num_beams"),
            (r#"{"num_beams": 1000}"#, "num_beams"),
            (r#"{"max_new_tokens": 0}"#, "max_tokens"),
            (r#"{"repetition_penalty": -1}"#, "repetition_penalty"),
            (r#"{"num_beams": "five"}"#, "five"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(error.contains(GENERATION_CONFIG), "{error}");
        }
    }
}
