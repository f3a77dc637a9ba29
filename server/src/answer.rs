//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::any::Any;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bridge::event::{Event, FinishReason, Timings, Usage};
use prompts::CallReader;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout, timeout_at};

use crate::extract::json_body;
use crate::fields::as_string;
use crate::metrics::Metrics;
use crate::request::{AnswerRequest, Kind, body_fields};
use crate::response::{Choice, Head};
use crate::stream;
use crate::traces::{CLIENT_LEFT, RequestSpan};
use crate::{Abilities, App, Backend, Error, Result, ServeOptions};

/// An answer that is being generated. Dropping it cancels the generation and lets the next request in.
pub(crate) struct Answer {
    /// Of each prompt. The choices of the second follow those of the first.
    events: Vec<Receiver<Event>>,
    /// The prompt that is listened to first, in turn.
    turn: usize,
    /// Choices of each prompt.
    n: usize,
    prompt_param: &'static str,
    image_param: String,
    /// Until when the next event must come, and what that is called.
    deadline: Deadline,
    started: Instant,
    last_event: Option<Instant>,
    /// Choices that are not complete, and what those that are used.
    running: usize,
    usage: Usage,
    finish_reasons: Vec<FinishReason>,
    /// Whether it ended early, by a fault of its own.
    failed: bool,
    span: RequestSpan,
    /// What the choice that ended last took by stage, where that is to be told, and all of it.
    timings: Option<(Timings, Duration)>,
    tells_timings: bool,
    /// The model's own name.
    name: String,
    metrics: Arc<Metrics>,
    /// A model ends its work when it is dropped.
    _model: Arc<dyn Any + Send + Sync>,
    _permit: OwnedSemaphorePermit,
}

/// A moment, and what must have ended by then.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    stage: &'static str,
    after: Duration,
}

impl Deadline {
    fn new(stage: &'static str, after: Duration) -> Deadline {
        Deadline {
            at: Instant::now() + after,
            stage,
            after,
        }
    }

    fn earlier(self, other: Deadline) -> Deadline {
        if self.at < other.at { self } else { other }
    }
}

impl Answer {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        let until = self.deadline.at;
        let event = poll_fn(|context| self.poll_next(context));
        match timeout_at(until, event).await {
            Ok(Some(event)) => {
                let now = Instant::now();
                let before = self.last_event.replace(now);
                match (&event, before) {
                    (Event::Token { .. }, None) => {
                        self.metrics.first_token(&self.name, now - self.started);
                    }
                    (Event::Token { .. }, Some(before)) => {
                        self.metrics.next_token(&self.name, now - before);
                    }
                    (Event::Done(summary), _) => {
                        self.running = self.running.saturating_sub(1);
                        self.count(summary.usage, summary.choice);
                        self.finish_reasons.push(summary.finish_reason);
                        if self.running == 0 {
                            let took = now - self.started;
                            self.timings = self.tells_timings.then_some((summary.timings, took));
                            self.metrics
                                .answered(&self.name, self.usage, summary.timings, took);
                            self.span.answered(self.usage, &self.finish_reasons);
                        }
                    }
                    (Event::Error(_), _) => self.failed = true,
                }
                Ok(event)
            }
            Ok(None) => {
                self.failed = true;
                tracing::error!("the model stopped in the middle of an answer");
                Err(Error::Internal)
            }
            Err(_) => {
                self.failed = true;
                Err(Error::Timeout {
                    stage: self.deadline.stage,
                    seconds: self.deadline.after.as_secs(),
                })
            }
        }
    }

    /// The next event of any prompt, its choice numbered over all of them.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let prompts = self.events.len();
        let mut is_open = false;
        for i in 0..prompts {
            let prompt = (self.turn + i) % prompts;
            match self.events[prompt].poll_recv(context) {
                Poll::Ready(Some(mut event)) => {
                    match &mut event {
                        Event::Token { choice, .. } => *choice += prompt * self.n,
                        Event::Done(summary) => summary.choice += prompt * self.n,
                        Event::Error(_) => {}
                    }
                    self.turn = prompt + 1;
                    return Poll::Ready(Some(event));
                }
                Poll::Ready(None) => {}
                Poll::Pending => is_open = true,
            }
        }
        match is_open {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    }

    /// Counts what a choice used. The choices of a prompt share its rows.
    fn count(&mut self, of: Usage, choice: usize) {
        self.usage.completion_tokens += of.completion_tokens;
        if choice.is_multiple_of(self.n) {
            self.usage.prompt_tokens += of.prompt_tokens;
            self.usage.image_tokens += of.image_tokens;
            self.usage.cached_tokens += of.cached_tokens;
        }
    }

    /// Whether all choices are complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.running == 0
    }

    /// What all choices that are complete used.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// What the answer took by stage and in all, once it is complete: where that was asked for.
    pub(crate) fn timings(&self) -> Option<(Timings, Duration)> {
        self.timings
    }

    /// Choices, of all prompts together.
    pub(crate) fn choices(&self) -> usize {
        self.n * self.events.len()
    }

    /// The model's own error, with the field to blame.
    pub(crate) fn model_error(&self, error: &bridge::Error) -> Error {
        Error::from_model(error, self.prompt_param, &self.image_param)
    }

    /// The span of the request.
    pub(crate) fn span(&self) -> &RequestSpan {
        &self.span
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.running > 0 && !self.failed {
            self.span.breaks(CLIENT_LEFT);
        }
    }
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat<B: Backend>(
    app: State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    answer(Kind::Chat, app, request).await
}

/// `POST /v1/completions`
pub(crate) async fn text<B: Backend>(
    app: State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    answer(Kind::Text, app, request).await
}

async fn answer<B: Backend>(
    kind: Kind,
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    let span = RequestSpan::of(&request);
    app.models.is_ready()?;
    // Before the body is read: a request that finds no room costs nothing.
    let mut permit = app.admit()?;
    let started = Instant::now();
    let whole_request = Deadline::new("the answer", app.options.request_timeout);
    let body = read_body(request, &app.options).await?;
    // Megabytes of JSON and base64, then templates and tokenizing: not for the async runtime.
    let parser = app.clone();
    let of = span.clone();
    let (asked, name, model, permit) = blocking(move || {
        let mut fields = body_fields(&body, kind.table())?;
        drop(body);
        let asked_name = as_string(fields.required("model")?, "model")?;
        let (name, model) = parser.models.get(&asked_name)?;
        check_kind(kind, name, model.abilities())?;
        let sampling = model.default_sampling();
        let syntax = model.call_syntax();
        let asked = AnswerRequest::parse(kind, fields, sampling, &syntax, &parser.options)?;
        of.asks(kind, &asked_name, name, &asked.requests);
        let prompts = asked.requests.len();
        if prompts > parser.options.max_requests {
            let most = parser.options.max_requests;
            let reason =
                format!("must not have more prompts than this server takes requests, {most}");
            return Err(Error::invalid(kind.prompt_param(), reason));
        }
        if prompts > 1 {
            permit.merge(parser.admit_many(prompts - 1)?);
        }
        // The permit goes with the work, which goes on when the client has left.
        Ok((asked, name.to_owned(), model, permit))
    })
    .await?;
    let AnswerRequest {
        mut requests,
        images,
        stream,
        include_usage,
        timings,
        logprobs,
        calls,
        names_tier,
    } = asked;
    let n = requests.first().map_or(1, |request| request.sampling.n);
    let (prompt_param, image_param) = (kind.prompt_param(), images.param());
    // Pictures come with a chat, which is one prompt.
    let images = images.load(&app.options).await?;
    if let Some(request) = requests.first_mut() {
        request.images = images;
    }
    let head = Head::new(kind, &name, model.fingerprint(), logprobs, names_tier);
    let first_token = Deadline::new("the first token", app.options.first_token_timeout);
    let mut answer = blocking(move || {
        let events: Vec<Receiver<Event>> = requests
            .into_iter()
            .map(|request| model.submit(request))
            .collect::<bridge::Result<_>>()
            .map_err(|error| Error::from_model(&error, prompt_param, &image_param))?;
        Ok(Answer {
            running: n * events.len(),
            events,
            turn: 0,
            n,
            prompt_param,
            image_param,
            deadline: first_token.earlier(whole_request),
            started,
            last_event: None,
            usage: Usage::default(),
            finish_reasons: Vec::new(),
            failed: false,
            span,
            timings: None,
            tells_timings: timings,
            name,
            metrics: app.metrics.clone(),
            _model: model,
            _permit: permit,
        })
    })
    .await?;
    // What is wrong with the request is known by the first event: in time for a status.
    let first = match answer.next().await? {
        Event::Error(error) => return Err(answer.model_error(&error)),
        first => first,
    };
    answer.deadline = whole_request;
    if stream {
        return Ok(stream::respond(head, answer, first, calls, include_usage));
    }
    whole(&head, answer, first, calls).await
}

/// Refuses what a model of its kind does not do.
fn check_kind(kind: Kind, name: &str, abilities: Abilities) -> Result<()> {
    match kind {
        Kind::Chat if !abilities.chats => Err(Error::wrong_model(
            name,
            "answers no messages",
            "a bundle with a language model, a blip for captions or question answering, or a blip2-itm with its caption \
             head",
        )),
        Kind::Text if !abilities.completes => Err(Error::wrong_model(
            name,
            "goes on with no text",
            "a bundle with a language model",
        )),
        _ => Ok(()),
    }
}

pub(crate) async fn read_body(request: Request, options: &ServeOptions) -> Result<Bytes> {
    let (head, body) = request.into_parts();
    let body = json_body(&head.headers, body, options.max_body_bytes);
    timeout(options.body_timeout, body)
        .await
        .map_err(|_| Error::BodyLost)?
}

/// Runs what blocks or takes long.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // What it logs is of the same request.
    let span = tracing::Span::current();
    let work = tokio::task::spawn_blocking(move || span.in_scope(work));
    work.await.map_err(|error| {
        tracing::error!(%error, "a request failed");
        Error::Internal
    })?
}

async fn whole(
    head: &Head,
    mut answer: Answer,
    first: Event,
    calls: Option<CallReader>,
) -> Result<Response> {
    let mut choices = vec![Choice::new(calls); answer.choices()];
    let mut event = first;
    loop {
        match event {
            Event::Token {
                choice,
                text,
                logprobs,
                ..
            } => {
                if let Some(choice) = choices.get_mut(choice) {
                    choice.push(&text);
                    choice.logprobs.extend(logprobs);
                }
            }
            Event::Done(summary) => {
                if let Some(choice) = choices.get_mut(summary.choice) {
                    choice.push(&summary.text);
                    choice.logprobs.extend_from_slice(&summary.logprobs);
                    choice.finish(summary.finish_reason);
                }
                if answer.is_complete() {
                    let completion = head.completion(&choices, answer.usage(), answer.timings());
                    return Ok(Json(completion).into_response());
                }
            }
            Event::Error(error) => return Err(answer.model_error(&error)),
        }
        event = answer.next().await?;
    }
}
