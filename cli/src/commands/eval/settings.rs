//! How questions are asked.

use std::borrow::Cow;

use anyhow::{Result, bail};
use bridge::bundle::Bundle;
use bridge::engine::Sampling;
use bridge::model::Prompt;
use eval::preset;
use eval::{Files, Task};
use prompts::{Message, Part, Role};
use serde::Serialize;

use super::super::{bundle_hash, sampling};
use crate::args::EvalArgs;

/// All that answers depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    task: Task,
    /// Name of the file with the questions.
    questions: String,
    bundle: String,
    /// Tells the bundle's files from others.
    bundle_hash: String,
    preset: Option<&'static str>,
    /// None where the bundle's layout says all there is to say.
    prompt: Option<String>,
    /// Answers to choose from, where they are given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    min_tokens: usize,
    num_beams: usize,
    length_penalty: f32,
    repetition_penalty: f32,
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    cache_type: String,
    vision: String,
    /// With a preset, the prompt is all that stands beside the picture, without the bundle's layout.
    #[serde(skip)]
    preset_settings: Option<preset::Settings>,
    /// How tokens are chosen.
    #[serde(skip)]
    pub sampling: Sampling,
}

impl Settings {
    /// What the command line, a preset and the bundle say, in this order.
    ///
    /// # Errors
    /// The prompt has no place for the question, or the bundle no language model.
    pub fn new(args: &EvalArgs, files: &Files, bundle: &Bundle) -> Result<Settings> {
        let manifest = bundle.manifest();
        let Some(language_model) = bundle.llm() else {
            bail!(
                "{}: no language model is here, and `qbridge eval` asks one. Captions of `qbridge caption` are scored \
                 with --answers, as a file of [{{\"image_id\": ..., \"caption\": ...}}]",
                bundle.dir().display()
            );
        };
        let is_encoder_decoder = language_model.is_encoder_decoder();
        let mut preset_settings = args
            .preset
            .map(|preset| preset.settings(args.task, is_encoder_decoder));
        if let Some(prompt) = &args.prompt {
            match (args.task.is_caption(), prompt.contains("{}")) {
                (false, false) => {
                    bail!("--prompt {prompt:?} has no place for the question: write {{}} there")
                }
                (true, true) => bail!(
                    "--prompt {prompt:?}: {} asks no questions",
                    args.task.name()
                ),
                _ => {}
            }
            if let Some(settings) = &mut preset_settings {
                settings.prompt = Cow::Owned(prompt.clone());
            }
        }
        let defaults = match &preset_settings {
            Some(settings) => Sampling {
                min_tokens: settings.min_tokens as usize,
                num_beams: usize::from(settings.num_beams),
                length_penalty: settings.length_penalty,
                repetition_penalty: settings.repetition_penalty,
                ..Sampling::default()
            },
            None => manifest.generation.sampling(),
        };
        let max_tokens = match (&args.generation.max_tokens, &preset_settings) {
            (Some(n), _) => *n as usize,
            (None, Some(settings)) => settings.max_tokens as usize,
            (None, None) => manifest.generation.max_tokens,
        };
        let sampling = sampling(&args.generation, defaults);
        let prompt = match &preset_settings {
            Some(settings) => Some(settings.prompt.clone().into_owned()),
            None => args.prompt.clone(),
        };
        let file_name = files.questions.file_name().unwrap_or_default();
        Ok(Settings {
            task: args.task,
            questions: file_name.to_string_lossy().into_owned(),
            bundle: manifest.name.clone(),
            bundle_hash: bundle_hash(manifest),
            preset: args.preset.map(preset::Preset::name),
            prompt,
            choices: args.choices.clone(),
            max_tokens,
            min_tokens: sampling.min_tokens,
            num_beams: sampling.num_beams,
            length_penalty: sampling.length_penalty,
            repetition_penalty: sampling.repetition_penalty,
            temperature: sampling.temperature,
            seed: args.generation.seed,
            cache_type: named(&args.engine.cache_type),
            vision: named(&args.engine.vision),
            preset_settings,
            sampling,
        })
    }

    /// The words of a question's prompt; none where a picture alone is captioned.
    pub fn text(&self, question: &str) -> Option<String> {
        match (&self.preset_settings, &self.prompt) {
            (Some(settings), _) => Some(settings.prompt_for(question)),
            (None, Some(prompt)) => Some(prompt.replace("{}", question)),
            (None, None) => (!question.is_empty()).then(|| question.to_owned()),
        }
    }

    /// The prompt of a question.
    pub fn prompt(&self, question: &str) -> Prompt {
        let text = self.text(question);
        if self.preset_settings.is_some() {
            return Prompt::Raw(text.unwrap_or_default());
        }
        // A message of a picture alone is captioned as the layout says.
        let mut parts = vec![Part::Image(0)];
        parts.extend(text.map(Part::Text));
        Prompt::Chat(vec![Message {
            role: Role::User,
            parts,
        }])
    }
}

/// A value's name on the command line.
pub fn named(value: &impl clap::ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |name| name.get_name().to_owned())
}
