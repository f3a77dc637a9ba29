//! One question at a time, many at once: its picture and its prompt to the model, and the answer to a row.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bridge::bundle::Bundle;
use bridge::engine::Sampling;
use bridge::event::{FinishReason, Usage};
use bridge::model::{Model, ModelOptions, Prompt, Request};
use eval::preset;
use eval::{Dataset, Files, Record, Task};
use prompts::{Message, Part, Role};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::super::{load_model, model_options, sampling};
use super::rows::Row;
use crate::args::EvalArgs;
use crate::batch::{self, Choice, Failure, LOOK_AHEAD, collect, read_image};

/// Digits of the bundle's hash that are told.
const HASH_DIGITS: usize = 16;

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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<String>,
    max_tokens: usize,
    min_tokens: usize,
    num_beams: usize,
    length_penalty: f32,
    repetition_penalty: f32,
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    cache_type: String,
    vision: String,
    /// Whether the prompt is all that stands before the answer, without the bundle's layout.
    #[serde(skip)]
    is_raw: bool,
    #[serde(skip)]
    preset_settings: Option<preset::Settings>,
    #[serde(skip)]
    sampling: Sampling,
}

impl Settings {
    /// What the command line, a preset and the bundle say, in this order.
    ///
    /// # Errors
    /// The prompt has no place for the question.
    pub fn new(args: &EvalArgs, files: &Files, bundle: &Bundle) -> Result<Settings> {
        let manifest = bundle.manifest();
        let mut preset_settings = args
            .preset
            .map(|preset| preset.settings(args.task, bundle.llm().is_encoder_decoder()));
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
        let prompt = preset_settings.as_ref().map(|settings| &*settings.prompt);
        let file_name = files.questions.file_name().unwrap_or_default();
        Ok(Settings {
            task: args.task,
            questions: file_name.to_string_lossy().into_owned(),
            bundle: manifest.name.clone(),
            bundle_hash: hash(bundle),
            preset: args.preset.map(preset::Preset::name),
            prompt: prompt.map(str::to_owned).or(args.prompt.clone()),
            choices: args
                .choices
                .iter()
                .map(|choice| choice.trim().to_owned())
                .collect(),
            max_tokens,
            min_tokens: sampling.min_tokens,
            num_beams: sampling.num_beams,
            length_penalty: sampling.length_penalty,
            repetition_penalty: sampling.repetition_penalty,
            temperature: sampling.temperature,
            seed: args.generation.seed,
            cache_type: named(&args.engine.cache_type),
            vision: named(&args.engine.vision),
            is_raw: preset_settings.is_some(),
            preset_settings,
            sampling,
        })
    }

    /// The words of a question's prompt.
    fn text(&self, question: &str) -> Option<String> {
        match (&self.preset_settings, &self.prompt) {
            (Some(settings), _) => Some(settings.prompt_for(question)),
            (None, Some(prompt)) => Some(prompt.replace("{}", question)),
            (None, None) => (!question.is_empty()).then(|| question.to_owned()),
        }
    }

    fn prompt(&self, question: &str) -> Prompt {
        let text = self.text(question);
        if self.is_raw {
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
fn named(value: &impl clap::ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |name| name.get_name().to_owned())
}

/// Of the hashes of the bundle's files.
fn hash(bundle: &Bundle) -> String {
    let mut hasher = Sha256::new();
    for (part, entry) in bundle.manifest().files.parts() {
        hasher.update(format!("{part} {}\n", entry.sha256));
    }
    let mut hash = format!("{:x}", hasher.finalize());
    hash.truncate(HASH_DIGITS);
    hash
}

/// Asks a bundle.
pub struct Asker {
    model: Model,
    settings: Settings,
    images: PathBuf,
    in_flight: usize,
}

impl Asker {
    /// Opens the bundle, with room for the longest of the questions. `images` is where the pictures are.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(
        args: &EvalArgs,
        bundle: &Bundle,
        settings: Settings,
        dataset: &Dataset,
        images: &Path,
    ) -> Result<Asker> {
        let sequences = match settings.choices.len() {
            0 => settings.sampling.num_beams,
            n => n,
        };
        let lengths = dataset.records.iter().map(|record| {
            let text = settings.text(&record.question);
            text.map_or(0, |text| text.len())
        });
        let caption_prompt = bundle.manifest().prompt.caption_prompt().len();
        let longest = lengths.fold(caption_prompt, usize::max);
        let answer = match settings.choices.iter().map(String::len).max() {
            None => settings.max_tokens,
            // Its tokens, and the one that ends it.
            Some(bytes) => bytes + 1,
        };
        let options = model_options(&args.engine, args.slots);
        let in_flight = options.slots + LOOK_AHEAD;
        let n_ctx = || batch::context(bundle.manifest(), longest, sequences, answer);
        let options = ModelOptions {
            num_beams: Some(sequences),
            n_ctx: options.n_ctx.or_else(|| Some(n_ctx())),
            queue: in_flight,
            ..options
        };
        Ok(Asker {
            model: load_model(bundle.dir(), &options)?,
            settings,
            images: images.to_owned(),
            in_flight,
        })
    }

    /// Questions that should be asked at once.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How they are asked.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The row of a question.
    ///
    /// # Errors
    /// Something that would fail for every question.
    pub async fn ask(&self, record: &Record) -> Result<Row> {
        let row = Row {
            id: record.id.clone(),
            image: record.picture.0.clone(),
            question: record.question.clone(),
            answer: None,
            error: None,
            finish_reason: None,
            usage: None,
        };
        match self.answer(record).await {
            Ok((answer, finish_reason, usage)) => Ok(Row {
                answer: Some(answer),
                finish_reason: Some(finish_reason),
                usage: Some(usage),
                ..row
            }),
            Err(Failure::Picture(error)) => Ok(Row {
                error: Some(error),
                ..row
            }),
            Err(Failure::Run(error)) => Err(error),
        }
    }

    async fn answer(&self, record: &Record) -> Result<(String, FinishReason, Usage), Failure> {
        let path = record.find_picture(&self.images);
        let path = path.map_err(|error| Failure::Picture(error.to_string()))?;
        let file = read_image(path, |_| Ok(())).await?;
        let settings = &self.settings;
        let prompt = settings.prompt(&record.question);
        let request = Request {
            images: vec![file],
            max_tokens: Some(settings.max_tokens),
            ..Request::new(prompt, settings.sampling)
        };
        let choices = &settings.choices;
        if choices.is_empty() {
            let answers = collect(self.model.submit(request)?, 1, "").await?;
            let text = answers.choices.first().map_or("", |choice| &choice.text);
            return Ok((text.trim().to_owned(), answers.finish_reason, answers.usage));
        }
        let answers = collect(self.model.score(request, choices)?, choices.len(), "").await?;
        let best = likeliest(&answers.choices).and_then(|i| choices.get(i));
        let best = best.cloned().unwrap_or_default();
        Ok((best, answers.finish_reason, answers.usage))
    }
}

/// The place of the likeliest choice, the first of equals.
fn likeliest(choices: &[Choice]) -> Option<usize> {
    // The logarithm of the probability that the model answers exactly this.
    let logprob = |choice: &Choice| {
        let mean = choice.mean_logprob.unwrap_or(f32::NEG_INFINITY);
        f64::from(mean) * choice.tokens as f64
    };
    let best = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
    let places = choices.iter().map(logprob).enumerate();
    places.max_by(best).map(|(i, _)| i)
}

/// Where the pictures are. One that is missing is a row; all of them are another directory.
///
/// # Errors
/// No directory is named, or not one of the pictures is there.
pub fn images<'a>(args: &'a EvalArgs, dataset: &Dataset) -> Result<&'a Path> {
    let images = args.images.as_ref().or(args.data.as_ref());
    let images = images.context("--images DIR is needed beside --questions")?;
    let mut first = None;
    for record in &dataset.records {
        match record.find_picture(images) {
            Ok(_) => return Ok(images),
            Err(error) => first = first.or(Some(error)),
        }
    }
    match first {
        Some(error) => Err(error).context("not one of the pictures is there"),
        None => Ok(images),
    }
}
