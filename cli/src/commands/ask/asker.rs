//! The model, and what all questions have in common.

use std::path::Path;

use anyhow::{Context, Result};
use qbridge::{Format, Generation, Model, ModelOptions, Ranking, Request};
use qformer::image::MAX_BYTES;
use server::fetch::{FetchOptions, Fetcher};

use super::super::answers::{self, Failure, Named, Row, generation};
use super::super::model_options;
use super::questions::{Question, Source};
use crate::args::AskArgs;
use crate::input;

/// Questions that are answered together where nothing else is said: as many as `serve` answers.
const SLOTS: u16 = 4;

/// Pictures ahead of the language model: a batch of the ViT.
const LOOK_AHEAD: usize = 8;

/// Choices that are computed together.
const MAX_CHOICES: usize = 16;

/// Reads pictures.
pub struct Pictures(Fetcher);

impl Pictures {
    /// From files, and by the server's rules from URLs.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Pictures> {
        Ok(Pictures(Fetcher::new(FetchOptions::default())?))
    }

    /// Reads the pictures of a question.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub async fn load(&self, sources: &[Source]) -> Result<Vec<Named>, Failure> {
        let mut pictures = Vec::with_capacity(sources.len());
        for source in sources {
            pictures.push(match source {
                Source::Here(named) => named.clone(),
                Source::File(path) => {
                    let path = path.clone();
                    let read = tokio::task::spawn_blocking(move || input::picture(&path)).await;
                    let read = read.map_err(|error| Failure::Run(error.into()))?;
                    Named {
                        name: source.name(),
                        picture: read.map_err(|error| Failure::Question(error.to_string()))?,
                    }
                }
                Source::Url(url) => {
                    let fetched = self.fetch(url).await;
                    let wrong = |error| Failure::Question(format!("{url}: {error}"));
                    Named {
                        name: url.clone(),
                        picture: fetched.map_err(wrong)?.into(),
                    }
                }
            });
        }
        Ok(pictures)
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, server::fetch::FetchError> {
        let url = self.0.check(url)?;
        self.0.fetch(&url, MAX_BYTES, self.0.deadline()).await
    }
}

/// The model, and what all questions have in common.
pub struct Asker {
    model: Model,
    pictures: Pictures,
    generation: Generation,
    schema: Option<serde_json::Value>,
    ranking: Ranking,
    is_raw: bool,
    in_flight: usize,
}

impl Asker {
    /// Opens the bundle for so many questions, where that is known.
    ///
    /// # Errors
    /// It cannot be opened, or the schema cannot be read.
    pub async fn open(args: &AskArgs, questions: Option<usize>) -> Result<Asker> {
        let schema = args.schema.as_deref().map(read_schema).transpose()?;
        let enough = questions.map_or(SLOTS, |n| u16::try_from(n).unwrap_or(SLOTS).clamp(1, SLOTS));
        let slots = args.slots.unwrap_or(enough);
        let num_beams = match args.choices.len() {
            0 => args.generation.num_beams.map(usize::from),
            n => Some(n.min(MAX_CHOICES)),
        };
        let mut generation = generation(&args.generation);
        if schema.is_some() {
            // The bundle's own beams do not go with it; those that were asked for are refused.
            generation.num_beams = generation.num_beams.or(Some(1));
        }
        let in_flight = usize::from(slots) + LOOK_AHEAD;
        let options = ModelOptions {
            num_beams,
            queue: in_flight,
            for_throughput: args.jsonl.is_some(),
            ..model_options(&args.engine, slots)
        };
        Ok(Asker {
            pictures: Pictures::new()?,
            model: answers::open(&args.bundle, options).await?,
            generation,
            schema,
            ranking: args.rank_by.into(),
            is_raw: args.raw,
            in_flight,
        })
    }

    /// Questions that should be asked at once.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The row of a question, its pictures read first.
    ///
    /// # Errors
    /// Something that would fail for every question.
    pub async fn row(&self, question: Question) -> Result<Row> {
        let answered = match self.pictures.load(&question.pictures).await {
            Ok(pictures) => self.ask(&question, &pictures, |_| Ok(())).await,
            Err(failure) => Err(failure),
        };
        match answered {
            Err(Failure::Question(reason) | Failure::Pictures(reason)) => {
                Ok(question.row().failed(reason))
            }
            answered => Ok(answered?),
        }
    }

    /// Asks a question; `on_text` sees each piece of an answer that is not chosen as it comes.
    ///
    /// # Errors
    /// There is no answer, or `on_text` fails.
    pub async fn ask(
        &self,
        question: &Question,
        pictures: &[Named],
        on_text: impl FnMut(&str) -> std::io::Result<()>,
    ) -> Result<Row, Failure> {
        let (row, request) = (question.row(), self.request(question, pictures));
        if question.choices.is_empty() {
            let answer = answers::answer(&self.model, request, pictures, on_text).await?;
            let is_cut = answer.finish_reason == qbridge::FinishReason::Length;
            let row = row.answered(answer);
            return Ok(match self.schema.is_some() && is_cut {
                true => row.failed("the JSON is cut: raise --max-tokens".to_owned()),
                false => row,
            });
        }
        if self.schema.is_some() {
            let reason = "choices and --schema: an answer has one form";
            return Err(Failure::Question(reason.to_owned()));
        }
        let ranked = self.model.rank(request, &question.choices).await;
        let ranked = ranked.map_err(|error| Failure::of(error, pictures))?;
        Ok(row.chosen(ranked, self.ranking))
    }

    fn request(&self, question: &Question, pictures: &[Named]) -> Request {
        let request = match self.is_raw {
            true => Request::raw(&question.text),
            false => Request::new(),
        };
        let mut request = pictures
            .iter()
            .fold(request, |request, named| {
                request.picture(named.picture.clone())
            })
            .generation(self.generation.clone());
        if !self.is_raw {
            request = request.text(&question.text);
        }
        match &self.schema {
            Some(schema) => request.format(Format::JsonSchema(schema.clone())),
            None => request,
        }
    }
}

fn read_schema(path: &Path) -> Result<serde_json::Value> {
    let named = || path.display().to_string();
    let text = std::fs::read(path).with_context(named)?;
    serde_json::from_slice(&text).with_context(named)
}
