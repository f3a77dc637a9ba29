//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bridge::event::Event;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout, timeout_at};

use crate::extract::json_body;
use crate::request::ChatRequest;
use crate::response::Head;
use crate::stream;
use crate::{App, Backend, Error, Result, ServeOptions};

/// An answer that is being generated. Dropping it cancels the generation and lets the next request in.
pub(crate) struct Answer {
    events: Receiver<Event>,
    image_param: String,
    /// Until when the next event must come, and what that is called.
    deadline: Deadline,
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

    fn missed(self) -> Error {
        Error::Timeout {
            stage: self.stage,
            seconds: self.after.as_secs(),
        }
    }
}

impl Answer {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        next(&mut self.events, self.deadline).await
    }

    /// The field to blame for a picture.
    pub(crate) fn image_param(&self) -> &str {
        &self.image_param
    }
}

pub(crate) async fn completions<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    let name = app.backend()?.name();
    // Before the body is read: a request that finds no room costs nothing.
    let permit = app
        .admission
        .clone()
        .try_acquire_owned()
        .map_err(|_| Error::QueueFull)?;
    let whole_request = Deadline::new("the answer", app.options.request_timeout);
    let head = Head::new(name);
    let body = read_body(request, &app.options).await?;
    // Megabytes of JSON and base64, then templates and tokenizing: not for the async runtime.
    let parser = app.clone();
    let chat = blocking(move || {
        let backend = parser.backend()?;
        ChatRequest::parse(
            &body,
            backend.name(),
            backend.default_sampling(),
            &parser.options,
        )
    })
    .await?;
    let ChatRequest {
        mut request,
        images,
        stream,
        include_usage,
    } = chat;
    let image_param = images.param();
    request.images = images.load(&app.options).await?;
    let first_token = Deadline::new("the first token", app.options.first_token_timeout);
    let param = image_param.clone();
    let mut events = blocking(move || {
        let submitted = app.backend()?.submit(request);
        submitted.map_err(|error| Error::from_model(&error, &param))
    })
    .await?;
    let first = match first_token.at < whole_request.at {
        true => next(&mut events, first_token).await?,
        false => next(&mut events, whole_request).await?,
    };
    // What is wrong with the request is known by the first event: in time for a status.
    if let Event::Error(error) = first {
        return Err(Error::from_model(&error, &image_param));
    }
    let answer = Answer {
        events,
        image_param,
        deadline: whole_request,
        _permit: permit,
    };
    if stream {
        return Ok(stream::respond(head, answer, first, include_usage));
    }
    whole(&head, answer, first).await
}

async fn read_body(request: Request, options: &ServeOptions) -> Result<Bytes> {
    let (head, body) = request.into_parts();
    let body = json_body(&head.headers, body, options.max_body_bytes);
    timeout(options.body_timeout, body)
        .await
        .map_err(|_| Error::BodyLost)?
}

/// Runs what blocks or takes long.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a request failed");
        Error::Internal
    })?
}

async fn next(events: &mut Receiver<Event>, deadline: Deadline) -> Result<Event> {
    match timeout_at(deadline.at, events.recv()).await {
        Ok(Some(event)) => Ok(event),
        Ok(None) => {
            tracing::error!("the model stopped in the middle of an answer");
            Err(Error::Internal)
        }
        Err(_) => Err(deadline.missed()),
    }
}

async fn whole(head: &Head, mut answer: Answer, first: Event) -> Result<Response> {
    let mut text = String::new();
    let mut event = first;
    loop {
        match event {
            Event::Token { text: piece, .. } => text.push_str(&piece),
            Event::Done(summary) => {
                text.push_str(&summary.text);
                return Ok(Json(head.completion(&text, &summary)).into_response());
            }
            Event::Error(error) => return Err(Error::from_model(&error, answer.image_param())),
        }
        event = answer.next().await?;
    }
}
