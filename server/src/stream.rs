//! An answer piece by piece, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bridge::event::{Event, Summary, TokenLogprobs};
use prompts::{CallReader, Said};
use serde_json::Value;

use crate::Error;
use crate::answer::Answer;
use crate::response::{Head, add_timings};
use crate::tools::{call_id, said};

/// A comment is sent when nothing else was for so long, so that nothing on the way gives up.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Events of one answer on their way to the client. Dropped with the connection, and the model's work with it.
struct Stream {
    head: Head,
    answer: Answer,
    include_usage: bool,
    choices: Vec<Choice>,
    pending: VecDeque<String>,
    ended: bool,
}

/// One of the answers on its way.
#[derive(Clone)]
struct Choice {
    /// Reads calls out of it, where there may be any.
    reader: Option<CallReader>,
    /// Calls so far.
    calls: usize,
    /// Characters of its tokens so far.
    offset: usize,
}

/// Streams an answer whose first event has come and is no error.
pub(crate) fn respond(
    head: Head,
    answer: Answer,
    first: Event,
    calls: Option<CallReader>,
    include_usage: bool,
) -> Response {
    let choice = Choice {
        reader: calls,
        calls: 0,
        offset: 0,
    };
    let n = answer.choices();
    let mut stream = Stream {
        head,
        answer,
        include_usage,
        choices: vec![choice; n],
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
        if let Some(of) = self.choices.get_mut(choice) {
            let said = said(&mut of.reader, text);
            self.push_said(choice, said, logprobs);
        }
    }

    fn push_said(&mut self, index: usize, mut said: Vec<Said>, logprobs: &[TokenLogprobs]) {
        let (Some(choice), head) = (self.choices.get_mut(index), &self.head) else {
            return;
        };
        if said.is_empty() && !logprobs.is_empty() {
            said.push(Said::Text(String::new()));
        }
        let mut chunks = Vec::with_capacity(said.len());
        let mut logprobs = logprobs;
        for said in said {
            // With the first piece, whatever the tokens are of.
            let logprobs = std::mem::take(&mut logprobs);
            let offset = &mut choice.offset;
            chunks.push(match said {
                Said::Text(text) => head.piece(index, &text, logprobs, offset),
                Said::Call(name) => {
                    let id = call_id(choice.reader.as_ref());
                    let call = (choice.calls, id.as_str(), name.as_str());
                    choice.calls += 1;
                    head.call(index, call, logprobs, offset)
                }
                Said::Arguments(more) => {
                    let call = choice.calls.saturating_sub(1);
                    head.arguments(index, (call, &more), logprobs, offset)
                }
            });
        }
        chunks.into_iter().for_each(|chunk| self.push_chunk(chunk));
    }

    fn push_chunk(&mut self, mut chunk: Value) {
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        self.pending.push_back(chunk.to_string());
    }

    fn finish(&mut self, summary: &Summary) {
        let choice = summary.choice;
        self.push_text(choice, &summary.text, &summary.logprobs);
        let reader = self.choices.get_mut(choice);
        let rest = reader.and_then(|choice| Some(choice.reader.as_mut()?.finish()));
        self.push_said(choice, rest.unwrap_or_default(), &[]);
        let calls = self.choices.get(choice).map_or(0, |choice| choice.calls);
        let mut ending = self.head.ending(choice, summary.finish_reason, calls);
        if !self.answer.is_complete() {
            return self.push_chunk(ending);
        }
        let timings = self.answer.timings();
        if self.include_usage {
            self.push_chunk(ending);
            let mut last = self.head.usage_chunk(self.answer.usage());
            add_timings(&mut last, timings);
            self.pending.push_back(last.to_string());
        } else {
            add_timings(&mut ending, timings);
            self.push_chunk(ending);
        }
        self.end();
    }

    fn fail(&mut self, error: &Error) {
        self.answer.span().breaks(error.code());
        self.pending.push_back(error.body().to_string());
        self.end();
    }

    fn end(&mut self) {
        self.pending.push_back("[DONE]".to_owned());
        self.ended = true;
    }
}
