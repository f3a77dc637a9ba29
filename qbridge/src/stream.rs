//! An answer on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bridge::event::{Event, FinishReason, Timings, Usage};
use bridge::model::Model;
use futures_util::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;

use crate::{Error, Result};

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub token_ids: Vec<i32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Rows of the prompt and tokens of the answer.
    pub usage: Usage,
    /// Seconds spent in each stage.
    pub timings: Timings,
}

/// The text of an answer as it comes. Dropping it cancels the answer. One that is not read keeps its slot: a few dozen tokens
/// ahead the model waits for it, so a task that asks something else meanwhile needs a slot free, or reads this first.
pub struct AnswerStream {
    events: Receiver<Event>,
    text: String,
    token_ids: Vec<i32>,
    end: Option<Result<Answer>>,
    _place: OwnedSemaphorePermit,
    /// Who answers, dropped last.
    _model: Arc<Model>,
}

impl AnswerStream {
    pub(crate) fn new(
        events: Receiver<Event>,
        place: OwnedSemaphorePermit,
        model: Arc<Model>,
    ) -> Self {
        Self {
            events,
            text: String::new(),
            token_ids: Vec::new(),
            end: None,
            _place: place,
            _model: model,
        }
    }

    /// The next piece of text, never an empty one; `None` when the answer is complete.
    ///
    /// # Errors
    /// The request failed. Nothing follows.
    pub async fn next(&mut self) -> Option<Result<String>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Waits for the rest and returns the whole answer, the pieces that were taken included.
    ///
    /// # Errors
    /// The request failed.
    pub async fn finish(mut self) -> Result<Answer> {
        while let Some(text) = self.next().await {
            text?;
        }
        self.end.unwrap_or(Err(Error::Stopped))
    }

    /// Takes an event; the text that it brings.
    fn take(&mut self, event: Option<Event>) -> Result<String> {
        match event {
            Some(Event::Token { id, text, .. }) => {
                self.token_ids.push(id);
                self.text.push_str(&text);
                Ok(text)
            }
            Some(Event::Done(summary)) => {
                self.text.push_str(&summary.text);
                self.end = Some(Ok(Answer {
                    text: std::mem::take(&mut self.text),
                    token_ids: std::mem::take(&mut self.token_ids),
                    finish_reason: summary.finish_reason,
                    usage: summary.usage,
                    timings: summary.timings,
                }));
                Ok(summary.text)
            }
            Some(Event::Error(error)) => Err(error),
            None => Err(Error::Stopped),
        }
    }
}

impl std::fmt::Debug for AnswerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerStream")
            .field("text", &self.text)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Stream for AnswerStream {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.end.is_none() {
            let event = match self.events.poll_recv(context) {
                Poll::Ready(event) => event,
                Poll::Pending => return Poll::Pending,
            };
            match self.take(event) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => return Poll::Ready(Some(Ok(text))),
                Err(error) => {
                    self.end = Some(Err(Error::Stopped));
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }
}
