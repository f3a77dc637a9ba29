//! One picture at a time, many at once: its bytes to the model, and the answers to a row.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use bridge::bundle::Manifest;
use bridge::engine::Sampling;
use bridge::model::{Model, ModelOptions, Prompt, Request};
use prompts::{Layout, Message, Part, Role};

use super::super::{load_model, model_options, sampling};
use super::itg;
use super::outputs::Sidecars;
use super::rows::Row;
use crate::args::CaptionArgs;
use crate::batch::{self, Answers, Choice, Failure, LOOK_AHEAD, collect};
use crate::inputs::{Item, Loader, Picture};

/// Captions pictures.
pub struct Captioner {
    writer: Writer,
    loader: Loader,
    sidecars: Option<Sidecars>,
    prompt: Prompt,
    prefix: String,
    sampling: Sampling,
    max_tokens: Option<usize>,
    has_scores: bool,
    min_score: Option<f32>,
    in_flight: usize,
}

/// What writes captions.
enum Writer {
    LanguageModel(Box<Model>),
    Heads(Arc<itg::Writer>),
}

/// A row, and the file of its picture where it has one of its own.
pub type Captioned = (Row, Option<PathBuf>);

impl Captioner {
    /// Opens the bundle.
    ///
    /// # Errors
    /// It cannot be opened, or what is asked for cannot be done.
    pub fn open(
        args: &CaptionArgs,
        manifest: &Manifest,
        sidecars: Option<Sidecars>,
    ) -> Result<Captioner> {
        let n = usize::from(args.captions);
        let sampling = Sampling {
            n,
            ..sampling(&args.generation, manifest.generation.sampling())
        };
        let num_beams = sampling.num_beams;
        if n > 1 && num_beams == 1 && sampling.temperature == 0.0 {
            bail!(
                "--captions {n} would be the same caption {n} times: add --temperature 0.8 or --num-beams {n}"
            );
        }
        if num_beams > 1 && n > num_beams {
            bail!("--captions {n} is more than the beams: add --num-beams {n}");
        }
        // A message of a picture alone is captioned as the layout says.
        let mut parts = vec![Part::Image(0)];
        parts.extend(args.prompt.clone().map(Part::Text));
        let prompt = Prompt::Chat(vec![Message {
            role: Role::User,
            parts,
        }]);
        let in_flight = usize::from(args.slots) + LOOK_AHEAD;
        if !manifest.has_language_model() {
            let writer = itg::Writer::open(args)?;
            return Ok(Captioner {
                writer: Writer::Heads(Arc::new(writer)),
                loader: Loader::new()?,
                sidecars,
                prompt,
                prefix: String::new(),
                max_tokens: None,
                has_scores: args.scores || args.min_score.is_some(),
                sampling,
                min_score: args.min_score,
                in_flight: usize::from(args.slots),
            });
        }
        let sequences = num_beams.max(n);
        let prefix = args.prefix.as_deref().unwrap_or_default().trim_end();
        let options = model_options(&args.engine, args.slots);
        let model = load_model(
            &args.bundle,
            &ModelOptions {
                num_beams: Some(sequences),
                n_ctx: options
                    .n_ctx
                    .or_else(|| Some(context(args, manifest, sequences))),
                queue: in_flight,
                for_throughput: true,
                ..options
            },
        )?;
        Ok(Captioner {
            writer: Writer::LanguageModel(Box::new(model)),
            loader: Loader::new()?,
            sidecars,
            prompt,
            prefix: prefix.to_owned(),
            max_tokens: args.generation.max_tokens.map(|n| n as usize),
            has_scores: args.scores || args.min_score.is_some() || (n > 1 && num_beams == 1),
            sampling,
            min_score: args.min_score,
            in_flight,
        })
    }

    /// Pictures that should be asked for at once.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The row of a picture. The file beside it is taken for it at once, so that the order of calls says who has it.
    ///
    /// # Errors
    /// Something that would fail for every picture.
    pub fn caption(&self, item: Item) -> impl Future<Output = Result<Captioned>> + use<'_> {
        let claim = match (&self.sidecars, &item.picture) {
            (Some(sidecars), Picture::File(path)) => sidecars.claim(path),
            _ => Ok(()),
        };
        self.caption_after(claim, item)
    }

    async fn caption_after(&self, claim: Result<()>, item: Item) -> Result<Captioned> {
        let Item {
            name, key, picture, ..
        } = item;
        let path = match &picture {
            Picture::File(path) => Some(path.clone()),
            _ => None,
        };
        let answers = match claim {
            Ok(()) => self.answer(picture).await,
            Err(error) => Err(Failure::Picture(error.to_string())),
        };
        let row = match answers {
            Ok(answers) => Row {
                image: name,
                key,
                usage: Some(answers.usage),
                ..self.row(answers.choices)
            },
            Err(Failure::Picture(error)) => Row::failed(name, key, error),
            Err(Failure::Run(error)) => return Err(error),
        };
        Ok((row, path))
    }

    async fn answer(&self, picture: Picture) -> Result<Answers, Failure> {
        let is_file = matches!(picture, Picture::File(_));
        let file = self.load(picture).await?;
        if self.sidecars.is_some() && !is_file {
            let reason =
                "it is no file of its own, so there is no place beside it: leave out --sidecar";
            return Err(Failure::Picture(reason.to_owned()));
        }
        let model = match &self.writer {
            Writer::LanguageModel(model) => model,
            Writer::Heads(writer) => {
                let writer = writer.clone();
                let caption = tokio::task::spawn_blocking(move || writer.caption(&file)).await;
                return Ok(caption.map_err(|error| Failure::Run(error.into()))??);
            }
        };
        let events = model.submit(Request {
            images: vec![file],
            answer_prefix: self.prefix.clone(),
            max_tokens: self.max_tokens,
            top_logprobs: (self.has_scores && self.sampling.num_beams == 1).then_some(0),
            ..Request::new(self.prompt.clone(), self.sampling)
        })?;
        collect(events, self.sampling.n, &self.prefix).await
    }

    async fn load(&self, picture: Picture) -> Result<Arc<[u8]>, Failure> {
        let sidecars = self.sidecars.clone();
        let check = move |path: &Path| sidecars.map_or(Ok(()), |sidecars| sidecars.check(path));
        self.loader.load(picture, check).await
    }

    /// What a row says of captions.
    fn row(&self, mut captions: Vec<Choice>) -> Row {
        if self.sampling.num_beams == 1 {
            let score = |caption: &Choice| caption.mean_logprob.unwrap_or(f32::NEG_INFINITY);
            captions.sort_by(|a, b| score(b).total_cmp(&score(a)));
        }
        let finish_reason = captions.first().map(|best| best.finish_reason);
        let best = captions.first().and_then(|best| best.mean_logprob);
        if let Some(least) = self.min_score {
            captions.retain(|caption| caption.mean_logprob.is_some_and(|score| score >= least));
        }
        let texts: Vec<String> = (captions.iter())
            .map(|caption| caption.text.trim().to_owned())
            .collect();
        let scores = || {
            let scores = captions.iter().filter_map(|caption| caption.mean_logprob);
            scores.map(rounded).collect()
        };
        let has_several = self.sampling.n > 1;
        Row {
            caption: texts.first().cloned(),
            score: best.filter(|_| self.has_scores).map(rounded),
            scores: (has_several && self.has_scores).then(scores),
            captions: has_several.then_some(texts),
            finish_reason,
            ..Row::default()
        }
    }
}

/// Rows of context that are enough for every picture: captioning asks all of them the same.
fn context(args: &CaptionArgs, manifest: &Manifest, sequences: usize) -> usize {
    let max_tokens = args.generation.max_tokens.map(|n| n as usize);
    let max_tokens = max_tokens.unwrap_or(manifest.generation.max_tokens);
    let prompt = args.prompt.as_deref();
    let own = manifest.prompt.as_ref().map_or("", Layout::caption_prompt);
    let prompt = prompt.unwrap_or(own);
    let prefix = args.prefix.as_deref().unwrap_or_default();
    batch::context(manifest, prompt.len() + prefix.len(), sequences, max_tokens)
}

/// Scores are worth four digits behind the point.
fn rounded(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}
