//! One question at a time, many at once: its picture and its prompt to the model, and the answer to a row.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bridge::bundle::Bundle;
use bridge::event::{FinishReason, Usage};
use bridge::model::{Model, ModelOptions, Request};
use eval::{Dataset, Record};
use prompts::Layout;
use qbridge::{Candidate, Ranking};

use super::super::{load_model, model_options};
use super::rows::Row;
use super::settings::Settings;
use crate::args::EvalArgs;
use crate::batch::{self, Choice, Failure, LOOK_AHEAD, collect, read_image};

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
        let layout = bundle.manifest().prompt.as_ref();
        let caption_prompt = layout.map_or("", Layout::caption_prompt);
        let longest = lengths.fold(caption_prompt.len(), usize::max);
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
            for_throughput: true,
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
                finish_reason,
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

    /// The answer, why it ended where it was not chosen, and what it took.
    async fn answer(
        &self,
        record: &Record,
    ) -> Result<(String, Option<FinishReason>, Usage), Failure> {
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
            let first = answers.choices.into_iter().next();
            let (text, finish_reason) = first
                .map(|choice| (choice.text, choice.finish_reason))
                .unzip();
            let text = text.unwrap_or_default();
            return Ok((text.trim().to_owned(), finish_reason, answers.usage));
        }
        let answers = collect(self.model.score(request, choices)?, choices.len(), "").await?;
        let best = likeliest(choices, &answers.choices).unwrap_or_default();
        Ok((best, None, answers.usage))
    }
}

/// The likeliest of the texts that were scored, the first of equals.
fn likeliest(texts: &[String], scored: &[Choice]) -> Option<String> {
    let candidate = |((index, text), choice): ((usize, &String), &Choice)| Candidate {
        text: text.clone(),
        index,
        // Of all its tokens together: the logarithm of the probability that the model answers exactly this.
        logprob: match choice.mean_logprob {
            Some(mean) => f64::from(mean) * choice.tokens as f64,
            None => f64::NEG_INFINITY,
        },
        tokens: choice.tokens,
    };
    let texts = texts.iter().enumerate();
    let mut candidates: Vec<Candidate> = texts.zip(scored).map(candidate).collect();
    Ranking::Sum.rank(&mut candidates);
    candidates.into_iter().next().map(|best| best.text)
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
