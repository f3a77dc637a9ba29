//! An answer piece by piece, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bridge::event::{Event, Summary, TokenLogprobs};
use serde_json::Value;

use crate::Error;
use crate::answer::Answer;
use crate::response::Head;

/// A comment is sent when nothing else was for so long, so that nothing on the way gives up.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Events of one answer on their way to the client. Dropped with the connection, and the model's work with it.
struct Stream {
    head: Head,
    answer: Answer,
    include_usage: bool,
    /// Characters of each choice's tokens so far.
    offsets: Vec<usize>,
    pending: VecDeque<String>,
    ended: bool,
}

/// Streams an answer whose first event has come and is no error.
pub(crate) fn respond(
    head: Head,
    answer: Answer,
    first: Event,
    n: usize,
    include_usage: bool,
) -> Response {
    let mut stream = Stream {
        head,
        answer,
        include_usage,
        offsets: vec![0; n],
        pending: VecDeque::new(),
        ended: false,
    };
    for choice in 0..n {
        if let Some(opening) = stream.head.opening(choice) {
            stream.push_chunk(opening);
        }
    }
    stream.push(Ok(first));
    let events = futures_util::stream::unfold(stream, |mut stream| async move {
        let data = stream.next().await?;
        Some((
            Ok::<_, Infallible>(sse::Event::default().data(data)),
            stream,
        ))
    });
    let ping = KeepAlive::new().interval(PING_INTERVAL).text("ping");
    Sse::new(events).keep_alive(ping).into_response()
}

impl Stream {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.pending.pop_front() {
                return Some(data);
            }
            if self.ended {
                return None;
            }
            let event = self.answer.next().await;
            self.push(event);
        }
    }

    fn push(&mut self, event: Result<Event, Error>) {
        match event {
            Ok(Event::Token {
                choice,
                text,
                logprobs,
                ..
            }) => self.push_text(choice, &text, &logprobs),
            Ok(Event::Done(summary)) => self.finish(&summary),
            Ok(Event::Error(error)) => {
                let error = self.answer.model_error(&error);
                self.fail(&error);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn push_text(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobs]) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        if let Some(offset) = self.offsets.get_mut(choice) {
            let piece = self.head.piece(choice, text, logprobs, offset);
            self.push_chunk(piece);
        }
    }

    fn push_chunk(&mut self, mut chunk: Value) {
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.pending.push_back(chunk.to_string());
    }

    fn finish(&mut self, summary: &Summary) {
        self.push_text(summary.choice, &summary.text, &summary.logprobs);
        self.push_chunk(self.head.ending(summary));
        if !self.answer.is_complete() {
            return;
        }
        if self.include_usage {
            let usage = self.answer.usage(summary);
            self.pending
                .push_back(self.head.usage_chunk(usage).to_string());
        }
        self.end();
    }

    fn fail(&mut self, error: &Error) {
        self.pending.push_back(error.body().to_string());
        self.end();
    }

    fn end(&mut self) {
        self.pending.push_back("[DONE]".to_owned());
        self.ended = true;
    }
}
