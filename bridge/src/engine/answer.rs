//! One answer on its way to the reader: from token ids to text, events and an end.

use std::collections::VecDeque;

use super::detokenize::Detokenizer;
use super::outbox::Outbox;
use super::stop::StopStrings;
use crate::event::{Event, FinishReason, TokenLogprobs};
use crate::language_model::LanguageModel;

/// One answer, token by token.
pub(super) struct Answer {
    choice: usize,
    ids: Vec<i32>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    held: VecDeque<Held>,
    /// Bytes of text so far, and of these those delivered.
    decoded: usize,
    delivered: usize,
}

/// The log-probabilities of a token that is not delivered yet.
struct Held {
    /// Where its text begins and ends, in bytes.
    start: usize,
    end: usize,
    logprobs: TokenLogprobs,
}

/// What ends an answer.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    /// Tokens that do.
    pub(super) ends: &'a [i32],
    /// Most tokens.
    pub(super) max_tokens: usize,
}

/// How an answer ended.
pub(super) struct Ending {
    pub(super) finish_reason: FinishReason,
    /// What was held back.
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprobs>,
}

impl Answer {
    /// `continues_text` says that it goes on with words of the prompt, so that a space before
    /// it is its own.
    pub(super) fn new(
        choice: usize,
        model: &LanguageModel,
        continues_text: bool,
        stop: StopStrings,
    ) -> Self {
        Answer {
            choice,
            ids: Vec::new(),
            detokenizer: Detokenizer::new(model.strips_leading_space() && !continues_text),
            stop,
            held: VecDeque::new(),
            decoded: 0,
            delivered: 0,
        }
    }

    /// Which of a request's answers this is.
    pub(super) fn choice(&self) -> usize {
        self.choice
    }

    /// Its tokens.
    pub(super) fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Whether token `id` after the tokens `ids` completes a stop string.
    pub(super) fn completes_stop(&self, ids: &[i32], id: i32, model: &LanguageModel) -> bool {
        if self.stop.is_empty() {
            return false;
        }
        let (mut detokenizer, mut stop) = (self.detokenizer.clone(), self.stop.clone());
        ids.iter().chain([&id]).any(|&id| {
            let mut text = String::new();
            detokenizer.push(&model.token_bytes(id), &mut text);
            stop.push(text).1
        })
    }

    /// Takes the next token and tells the reader; the ending when it completes the
    /// answer. `is_last` says that nothing can follow it.
    pub(super) fn accept(
        &mut self,
        id: i32,
        logprobs: Option<TokenLogprobs>,
        is_last: bool,
        limits: Limits<'_>,
        model: &LanguageModel,
        outbox: &mut Outbox,
    ) -> Option<Ending> {
        self.ids.push(id);
        if limits.ends.contains(&id) {
            self.send(id, String::new(), Vec::new(), outbox);
            return Some(self.ending(FinishReason::Stop));
        }
        let mut text = String::new();
        self.detokenizer.push(&model.token_bytes(id), &mut text);
        let start = self.decoded;
        self.decoded += text.len();
        self.held.extend(logprobs.map(|logprobs| Held {
            start,
            end: self.decoded,
            logprobs,
        }));
        let (text, stopped) = self.stop.push(text);
        self.delivered += text.len();
        let due = self.due(stopped);
        self.send(id, text, due, outbox);
        if stopped {
            return Some(Ending {
                finish_reason: FinishReason::Stop,
                text: String::new(),
                logprobs: Vec::new(),
            });
        }
        let finish_reason = match is_last {
            true => FinishReason::Stop,
            false if self.ids.len() >= limits.max_tokens => FinishReason::Length,
            false => return None,
        };
        Some(self.ending(finish_reason))
    }

    /// The end, with what was held back.
    fn ending(&mut self, finish_reason: FinishReason) -> Ending {
        let mut text = String::new();
        self.detokenizer.finish(&mut text);
        let (mut text, stopped) = self.stop.push(text);
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        self.delivered += text.len();
        let logprobs = match stopped {
            true => self.due(true),
            false => self.held.drain(..).map(|held| held.logprobs).collect(),
        };
        Ending {
            finish_reason,
            text,
            logprobs,
        }
    }

    /// The log-probabilities of what is delivered. Where a stop string cut the text,
    /// the token that it cut counts and those after it do not.
    fn due(&mut self, is_cut: bool) -> Vec<TokenLogprobs> {
        let is_due =
            |held: &Held| held.end <= self.delivered || is_cut && held.start < self.delivered;
        let n = self.held.iter().take_while(|held| is_due(held)).count();
        self.held.drain(..n).map(|held| held.logprobs).collect()
    }

    fn send(&self, id: i32, text: String, logprobs: Vec<TokenLogprobs>, outbox: &mut Outbox) {
        outbox.push(Event::Token {
            choice: self.choice,
            id,
            text,
            logprobs,
        });
    }
}
