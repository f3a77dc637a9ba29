//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bridge::event::Event;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

use crate::extract::json_body;
use crate::request::ChatRequest;
use crate::response::Head;
use crate::stream;
use crate::{App, Backend, Error, Result};

/// An answer that is being generated. Dropping it cancels the generation and lets the next request in.
pub(crate) struct Answer {
    events: Receiver<Event>,
    image_param: String,
    deadline: Instant,
    timeout: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Answer {
    /// The next event.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => {
                tracing::error!("the model stopped in the middle of an answer");
                Err(Error::Internal)
            }
            Err(_) => Err(Error::Timeout {
                seconds: self.timeout.as_secs(),
            }),
        }
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
    // Before the body is read: a request that finds no room costs nothing.
    let permit = app
        .admission
        .clone()
        .try_acquire_owned()
        .map_err(|_| Error::QueueFull)?;
    let timeout = app.options.request_timeout;
    let deadline = Instant::now() + timeout;
    let (head, body) = request.into_parts();
    let body = timeout_at(
        deadline,
        json_body(&head.headers, body, app.options.max_body_bytes),
    );
    let body = body.await.map_err(|_| Error::BodyLost)??;
    let head = Head::new(app.backend.name());
    // Megabytes of JSON and base64, then templates and tokenizing: not for the async runtime.
    let started = tokio::task::spawn_blocking(move || {
        let backend = &app.backend;
        let chat = ChatRequest::parse(
            &body,
            backend.name(),
            backend.default_sampling(),
            &app.options,
        )?;
        drop(body);
        let image_param = chat.image_param();
        let events = backend
            .submit(chat.request)
            .map_err(|error| Error::from_model(&error, &image_param))?;
        let answer = Answer {
            events,
            image_param,
            deadline,
            timeout,
            _permit: permit,
        };
        Ok::<_, Error>((answer, chat.stream, chat.include_usage))
    });
    let (mut answer, stream, include_usage) = started.await.map_err(|error| {
        tracing::error!(%error, "reading a request failed");
        Error::Internal
    })??;
    // What is wrong with the request is known by the first event: in time for a status.
    let first = match answer.next().await? {
        Event::Error(error) => return Err(Error::from_model(&error, answer.image_param())),
        first => first,
    };
    if stream {
        return Ok(stream::respond(head, answer, first, include_usage));
    }
    whole(&head, answer, first).await
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
