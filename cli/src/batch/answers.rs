//! A model's answers to one request, whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bridge::ErrorKind;
use bridge::bundle::Manifest;
use bridge::event::{Event, FinishReason, Usage};
use tokio::sync::mpsc::Receiver;

use crate::input;
use crate::told::told;

/// Pictures in flight beside those that the language model works on: two batches of the ViT, so that one is read and
/// decoded while the other is computed.
pub const LOOK_AHEAD: usize = 16;

/// Room for the text around a prompt, in tokens: a chat template's own words, and special tokens.
const TEMPLATE_TOKENS: usize = 256;

/// Why there is no answer.
pub enum Failure {
    /// The picture is at fault: the others go on.
    Picture(String),
    /// All pictures would fail.
    Run(anyhow::Error),
}

impl From<bridge::Error> for Failure {
    fn from(error: bridge::Error) -> Failure {
        match error.kind() {
            ErrorKind::InvalidImage | ErrorKind::ImageTooLarge => {
                Failure::Picture(error.to_string())
            }
            _ => Failure::Run(error.into()),
        }
    }
}

/// One of the answers to a request.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Mean log-probability of its tokens, where that was asked for.
    pub mean_logprob: Option<f32>,
    /// How many tokens that is.
    pub tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The answers to one request.
#[derive(Debug)]
pub struct Answers {
    /// Each of them.
    pub choices: Vec<Choice>,
    /// Rows of the prompt, and tokens of all answers.
    pub usage: Usage,
}

/// Reads events to the end of the last of `n` answers, each of which begins with `prefix`.
///
/// # Errors
/// The request failed.
pub async fn collect(
    mut events: Receiver<Event>,
    n: usize,
    prefix: &str,
) -> Result<Answers, Failure> {
    let begun = Choice {
        text: prefix.to_owned(),
        mean_logprob: None,
        tokens: 0,
        finish_reason: FinishReason::Length,
    };
    let mut choices = vec![begun; n];
    let mut left = n;
    while let Some(event) = events.recv().await {
        match event {
            Event::Token { choice, text, .. } => {
                if let Some(choice) = choices.get_mut(choice) {
                    choice.text.push_str(&text);
                }
            }
            Event::Done(summary) => {
                if let Some(choice) = choices.get_mut(summary.choice) {
                    choice.text.push_str(&summary.text);
                    choice.mean_logprob = summary.mean_logprob;
                    choice.tokens = summary.usage.completion_tokens;
                    choice.finish_reason = summary.finish_reason;
                }
                left -= 1;
                if left == 0 {
                    let usage = Usage {
                        completion_tokens: choices.iter().map(|choice| choice.tokens).sum(),
                        ..summary.usage
                    };
                    return Ok(Answers { choices, usage });
                }
            }
            Event::Error(error) => return Err(error.into()),
        }
    }
    Err(bridge::Error::Stopped.into())
}

/// Reads a picture file after `check`, beside the other work.
///
/// # Errors
/// It cannot be read, or the check failed.
pub async fn read_image(
    path: PathBuf,
    check: impl FnOnce(&Path) -> anyhow::Result<()> + Send + 'static,
) -> Result<Arc<[u8]>, Failure> {
    let read = move || check(&path).and_then(|()| input::read_image(&path));
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|error| Failure::Run(error.into()))?
        .map_err(|error| Failure::Picture(told(&error)))
}

/// Says on standard error why a picture failed, with its name once.
pub fn tell(name: &str, error: &str) {
    match error.contains(name) {
        true => eprintln!("qbridge: {error}"),
        false => eprintln!("qbridge: {name}: {error}"),
    }
}

/// Rows of context that are enough for one picture, prompts of at most `text_bytes`, and `sequences` answers or beams.
pub fn context(
    manifest: &Manifest,
    text_bytes: usize,
    sequences: usize,
    max_tokens: usize,
) -> usize {
    // A token is a byte at least.
    let rows = TEMPLATE_TOKENS + manifest.num_query_tokens + text_bytes + sequences * max_tokens;
    rows.next_multiple_of(256)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, clippy::unwrap_used)]

    use bridge::event::{Summary, Timings};

    use super::*;

    fn done(choice: usize, text: &str, finish_reason: FinishReason) -> Event {
        Event::Done(Summary {
            choice,
            finish_reason,
            usage: Usage {
                completion_tokens: 3,
                ..Usage::default()
            },
            timings: Timings::default(),
            text: text.to_owned(),
            logprobs: Vec::new(),
            mean_logprob: None,
        })
    }

    #[tokio::test]
    async fn each_answer_knows_why_it_ended() {
        let (sender, events) = tokio::sync::mpsc::channel(2);
        for event in [
            done(1, " b", FinishReason::Stop),
            done(0, " a", FinishReason::Length),
        ] {
            sender.send(event).await.unwrap();
        }
        let Ok(answers) = collect(events, 2, "so").await else {
            panic!("no answers");
        };
        let found: Vec<_> = (answers.choices.iter())
            .map(|choice| (choice.text.as_str(), choice.finish_reason))
            .collect();
        assert_eq!(
            found,
            [("so a", FinishReason::Length), ("so b", FinishReason::Stop)]
        );
        assert_eq!(answers.usage.completion_tokens, 6);
    }
}
