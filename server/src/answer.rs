//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bridge::event::{Event, Summary, Usage};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout, timeout_at};

use crate::extract::json_body;
use crate::fields::as_string;
use crate::metrics::Metrics;
use crate::request::{AnswerRequest, Kind, body_fields};
use crate::response::{Choice, Head};
use crate::stream;
use crate::{App, Backend, Error, Result, ServeOptions};

/// An answer that is being generated. Dropping it cancels the generation and lets the next request in.
pub(crate) struct Answer {
    events: Receiver<Event>,
    prompt_param: &'static str,
    image_param: String,
    /// Until when the next event must come, and what that is called.
    deadline: Deadline,
    started: Instant,
    last_event: Option<Instant>,
    /// Choices that are not complete, and the tokens of those that are.
    running: usize,
    completion_tokens: usize,
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
        match timeout_at(self.deadline.at, self.events.recv()).await {
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
                        self.completion_tokens += summary.usage.completion_tokens;
                        if self.running == 0 {
                            let usage = self.usage(summary);
                            let took = now - self.started;
                            self.metrics
                                .answered(&self.name, usage, summary.timings, took);
                        }
                    }
                    (Event::Error(_), _) => {}
                }
                Ok(event)
            }
            Ok(None) => {
                tracing::error!("the model stopped in the middle of an answer");
                Err(Error::Internal)
            }
            Err(_) => Err(Error::Timeout {
                stage: self.deadline.stage,
                seconds: self.deadline.after.as_secs(),
            }),
        }
    }

    /// Whether all choices are complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.running == 0
    }

    /// What all choices that are complete used, `summary` one of them.
    pub(crate) fn usage(&self, summary: &Summary) -> Usage {
        Usage {
            completion_tokens: self.completion_tokens,
            ..summary.usage
        }
    }

    /// The model's own error, with the field to blame.
    pub(crate) fn model_error(&self, error: &bridge::Error) -> Error {
        Error::from_model(error, self.prompt_param, &self.image_param)
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
    app.models.is_ready()?;
    // Before the body is read: a request that finds no room costs nothing.
    let permit = app.admit()?;
    let started = Instant::now();
    let whole_request = Deadline::new("the answer", app.options.request_timeout);
    let body = read_body(request, &app.options).await?;
    // Megabytes of JSON and base64, then templates and tokenizing: not for the async runtime.
    let parser = app.clone();
    let (asked, name, model, permit) = blocking(move || {
        let mut fields = body_fields(&body, kind.table())?;
        drop(body);
        let name = as_string(fields.required("model")?, "model")?;
        let (name, model) = parser.models.get(&name)?;
        let asked = AnswerRequest::parse(kind, fields, model.default_sampling(), &parser.options)?;
        // The permit goes with the work, which goes on when the client has left.
        Ok((asked, name.to_owned(), model, permit))
    })
    .await?;
    let AnswerRequest {
        mut request,
        images,
        stream,
        include_usage,
        logprobs,
    } = asked;
    let n = request.sampling.n;
    let (prompt_param, image_param) = (kind.prompt_param(), images.param());
    request.images = images.load(&app.options).await?;
    let head = Head::new(kind, &name, logprobs);
    let first_token = Deadline::new("the first token", app.options.first_token_timeout);
    let mut answer = blocking(move || {
        let events = model
            .submit(request)
            .map_err(|error| Error::from_model(&error, prompt_param, &image_param))?;
        Ok(Answer {
            events,
            prompt_param,
            image_param,
            deadline: first_token.earlier(whole_request),
            started,
            last_event: None,
            running: n,
            completion_tokens: 0,
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
        return Ok(stream::respond(head, answer, first, n, include_usage));
    }
    whole(&head, answer, first, n).await
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
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request failed");
        Error::Internal
    })?
}

async fn whole(head: &Head, mut answer: Answer, first: Event, n: usize) -> Result<Response> {
    let mut choices = vec![Choice::default(); n];
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
                    choice.text.push_str(&text);
                    choice.logprobs.extend(logprobs);
                }
            }
            Event::Done(summary) => {
                if let Some(choice) = choices.get_mut(summary.choice) {
                    choice.text.push_str(&summary.text);
                    choice.logprobs.extend_from_slice(&summary.logprobs);
                    choice.finish_reason = Some(summary.finish_reason);
                }
                if answer.is_complete() {
                    let usage = answer.usage(&summary);
                    return Ok(Json(head.completion(&choices, usage)).into_response());
                }
            }
            Event::Error(error) => return Err(answer.model_error(&error)),
        }
        event = answer.next().await?;
    }
}
