//! `qbridge bench`: how long each stage takes, from a picture's bytes to a caption, on the objects that a server runs.

mod comparing;
mod operations;
mod picture;
mod report;
mod timer;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use bridge::bundle::Bundle;
use bridge::engine::{PromptPart, Sequence};
use bridge::event::{Event, Summary, Timings};
use bridge::image_encoder::ImageEncoder;
use bridge::model::{Model, ModelOptions, Prompt, Request};
use candle_core::Tensor;
use prompts::{Message, Part, Role};
use tokio::sync::mpsc::{Receiver, channel};

use super::{load_model, model_options, print_json};
use crate::args::{BenchArgs, StageGroup};
use crate::input::read_image;
use crate::machine::Machine;
use report::{Report, Stage, Subject};
use timer::Timer;

/// Tokens of the prompts whose answers are decoded: few, for decoding is what is measured.
const SHORT_PROMPT: usize = 8;

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let picture = match &args.picture {
        Some(path) => read_image(path)?,
        None => picture::jpeg()?.into(),
    };
    if args.operations {
        return operations::run(args, &picture);
    }
    let report = match Bundle::open(&args.bundle)?.llm() {
        Some(_) => answering(args, picture)?,
        None => comparing::measure(args, &picture)?,
    };
    match args.json {
        true => print_json(&report)?,
        false => report.print()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Of a bundle with a language model.
fn answering(args: &BenchArgs, picture: Arc<[u8]>) -> Result<Report> {
    let options = ModelOptions {
        // Every picture is encoded, as one that comes for the first time.
        image_cache_bytes: 0,
        ..model_options(&args.engine, args.slots)
    };
    let model = load_model(&args.bundle, &options)?;
    let bench = Bench {
        args,
        model: &model,
        picture,
        timer: Timer::new(args),
    };
    let stages = bench.stages()?;
    Ok(Report {
        subject: Subject::of(&model, args, bench.picture.len()),
        stages,
        machine: Machine::here(),
    })
}

struct Bench<'a> {
    args: &'a BenchArgs,
    model: &'a Model,
    picture: Arc<[u8]>,
    timer: Timer<'a>,
}

impl Bench<'_> {
    /// All stages, in the order in which a request passes them.
    fn stages(&self) -> Result<Vec<Stage>> {
        let wants = |group| self.args.only.is_none_or(|only| only == group);
        let mut stages = Vec::new();
        if wants(StageGroup::Vision) {
            stages.extend(self.vision()?);
        }
        if wants(StageGroup::LanguageModel) {
            stages.extend(self.language_model()?);
        }
        if wants(StageGroup::Captions) {
            let (_, stage) = self
                .timer
                .timed("caption", || ended(self.caption(self.picture.clone())?))?;
            stages.push(stage);
            if self.args.slots > 1 {
                stages.push(self.captions()?);
            }
        }
        Ok(stages)
    }

    /// From a picture file to the rows that the language model reads.
    fn vision(&self) -> Result<Vec<Stage>> {
        let encoder = self.model.image_encoder();
        let mut stages = Vec::new();
        let (image, stage) = self
            .timer
            .timed("decode picture", || Ok(encoder.decode(&self.picture)?))
            .with_context(|| picture_name(self.args))?;
        stages.push(stage);
        let (pixels, stage) = self
            .timer
            .timed("preprocess", || Ok(encoder.preprocess(&image)?))?;
        stages.push(stage);
        let pixels = pixels.unsqueeze(0)?;
        let (vision, stage) = self
            .timer
            .timed("ViT", || finished(encoder.vision(&pixels)?))?;
        stages.push(stage);
        let (queries, stage) = self.timer.timed("Q-Former", || {
            finished(encoder.queries(&vision, instructions(encoder))?)
        })?;
        stages.push(stage);
        let (_, stage) = self
            .timer
            .timed("projection", || finished(encoder.project(&queries)?))?;
        stages.push(stage);
        Ok(stages)
    }

    /// Prefill and decoding.
    fn language_model(&self) -> Result<Vec<Stage>> {
        let mut stages = vec![self.prefill()?, self.decode(1)?];
        if self.args.slots > 1 {
            stages.push(self.decode(self.args.slots.into())?);
        }
        Ok(stages)
    }

    /// Reading a prompt: rows as a picture has them, whose values matter to no duration, and tokens.
    fn prefill(&self) -> Result<Stage> {
        let n_image = self.model.manifest().num_query_tokens;
        let n_embd = self.model.image_encoder().n_embd();
        let soft_prompt: Arc<[f32]> = (0..n_image * n_embd)
            .map(|i| (i * 7919 % 2001) as f32 * 1e-5 - 0.01)
            .collect();
        let most = self.model.engine().max_prompt_rows();
        let n_rows = (self.args.rows as usize).max(n_image + 1).min(most);
        let seconds = self.timer.measured("prefill", || {
            let prompt = vec![
                PromptPart::Embeddings(soft_prompt.clone()),
                PromptPart::Tokens(self.tokens(n_rows.saturating_sub(n_image))),
            ];
            Ok(ended(self.submit(prompt, 1)?)?.timings.prefill)
        })?;
        Ok(Stage::of_tokens(
            format!("prefill, {n_rows} rows"),
            n_rows,
            seconds,
        ))
    }

    /// Steps of `n` answers that are decoded together.
    fn decode(&self, n: usize) -> Result<Stage> {
        let name = match n {
            1 => "decode step, 1 slot".to_owned(),
            n => format!("decode step, {n} slots"),
        };
        let room = self.model.n_ctx().saturating_sub(SHORT_PROMPT);
        let n_tokens = (self.args.tokens as usize).min(room).max(2);
        let seconds = self.timer.measured(&name, || {
            let events = (0..n)
                .map(|_| {
                    self.submit(
                        vec![PromptPart::Tokens(self.tokens(SHORT_PROMPT))],
                        n_tokens,
                    )
                })
                .collect::<Result<Vec<_>>>()?;
            let timings = events
                .into_iter()
                .map(|events| Ok(ended(events)?.timings))
                .collect::<Result<Vec<_>>>()?;
            // They came at one moment: from the first that began to the last that ended.
            let began = |timings: &Timings| timings.queue + timings.prefill;
            let first = timings.iter().map(began).fold(f64::INFINITY, f64::min);
            let ended = timings
                .iter()
                .map(|timings| began(timings) + timings.decode);
            Ok((ended.fold(0.0, f64::max) - first) / (n_tokens - 1) as f64)
        })?;
        Ok(Stage::of_tokens(name, n, seconds))
    }

    /// As many captions at once as there are slots.
    fn captions(&self) -> Result<Stage> {
        let n = usize::from(self.args.slots);
        let name = format!("{n} captions at once");
        // What stands behind a picture's end is not read, and makes others of them: one that comes twice is encoded once.
        let pictures: Vec<Arc<[u8]>> = (0..n)
            .map(|i| [&self.picture[..], &vec![0; i]].concat().into())
            .collect();
        let seconds = self.timer.measured(&name, || {
            let started = Instant::now();
            let events = pictures
                .iter()
                .map(|picture| self.caption(picture.clone()))
                .collect::<Result<Vec<_>>>()?;
            for events in events {
                ended(events)?;
            }
            Ok(started.elapsed().as_secs_f64())
        })?;
        Ok(Stage::of_pictures(name, n, seconds))
    }

    /// Asks for a caption, as `qbridge caption` does.
    fn caption(&self, picture: Arc<[u8]>) -> Result<Receiver<Event>> {
        let prompt = Prompt::Chat(vec![Message {
            role: Role::User,
            parts: vec![Part::Image(0)],
        }]);
        Ok(self.model.submit(Request {
            images: vec![picture],
            cache_prompt: false,
            ..Request::new(prompt, self.model.default_sampling())
        })?)
    }

    /// Hands a prompt to the engine, whose answer has `n_tokens` tokens.
    fn submit(&self, prompt: Vec<PromptPart>, n_tokens: usize) -> Result<Receiver<Event>> {
        // Room for every event, so that a slow reader here slows nothing down.
        let (events, receiver) = channel(n_tokens + 1);
        self.model.engine().submit(Sequence {
            max_tokens: Some(n_tokens),
            ignore_eos: true,
            cache_prompt: false,
            ..Sequence::new(prompt, events)
        })?;
        Ok(receiver)
    }

    /// Tokens from all over the vocabulary.
    fn tokens(&self, n: usize) -> Vec<i32> {
        let n_vocab = self.model.language_model().n_vocab();
        (1..=n).map(|i| (i * 7919 % n_vocab) as i32).collect()
    }
}

/// Waits for the end of an answer.
fn ended(mut events: Receiver<Event>) -> Result<Summary> {
    loop {
        match events.blocking_recv() {
            Some(Event::Token { .. }) => {}
            Some(Event::Done(summary)) => return Ok(summary),
            Some(Event::Error(error)) => return Err(error.into()),
            None => return Err(bridge::Error::Stopped.into()),
        }
    }
}

/// What a Q-Former that reads an instruction is given.
fn instructions(encoder: &ImageEncoder) -> &'static [&'static str] {
    match encoder.reads_instruction() {
        true => &["What is in the picture?"],
        false => &[],
    }
}

/// What an error calls the picture.
fn picture_name(args: &BenchArgs) -> String {
    match &args.picture {
        Some(path) => path.display().to_string(),
        None => "the picture that is made here".to_owned(),
    }
}

/// A tensor that is there: a GPU computes in its own time.
fn finished(tensor: Tensor) -> Result<Tensor> {
    tensor.device().synchronize()?;
    Ok(tensor)
}
