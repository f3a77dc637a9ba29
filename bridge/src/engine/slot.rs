//! One admitted sequence, from its prompt to its last token.

use std::collections::HashSet;
use std::time::Instant;

use super::detokenize::Detokenizer;
use super::outbox::Outbox;
use super::sampling::{Candidates, PENALTY_WINDOW, Sampler};
use super::stop::StopStrings;
use super::{PromptPart, Waiting};
use crate::event::{Event, FinishReason, Summary, Timings, Usage};
use crate::language_model::LanguageModel;
use crate::llama::{Context, Row};
use crate::{Error, Result};

/// A sequence that holds KV cells.
pub(super) struct Slot {
    pub(super) outbox: Outbox,
    prompt: Vec<PromptPart>,
    n_prompt: usize,
    /// Rows in the KV cache.
    position: usize,
    /// The part of the prompt that comes next, and the row in it.
    next_part: usize,
    next_row: usize,
    /// Sampled and not computed yet.
    last_token: Option<i32>,
    n_sampled: usize,
    max_tokens: usize,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stop: StopStrings,
    stop_ids: HashSet<i32>,
    ignore_eos: bool,
    n_image: usize,
    timings: Timings,
    admitted: Instant,
    first_token: Option<Instant>,
}

impl Slot {
    /// `n_ctx` is the most rows a sequence may hold.
    pub(super) fn new(waiting: Waiting, model: &LanguageModel, n_ctx: usize) -> Slot {
        let Waiting {
            sequence,
            n_prompt,
            n_image,
            since,
        } = waiting;
        let admitted = Instant::now();
        let mut timings = sequence.timings;
        timings.queue = admitted.duration_since(since).as_secs_f64();
        let mut sampler = Sampler::new(&sequence.sampling, model.n_vocab());
        let ids = sequence.prompt.iter().flat_map(|part| match part {
            PromptPart::Tokens(ids) => ids.as_slice(),
            PromptPart::Embeddings(_) => &[],
        });
        let n_ids = ids.clone().count();
        for &id in ids.skip(n_ids.saturating_sub(PENALTY_WINDOW)) {
            sampler.accept(id);
        }
        // The last token of an answer needs no row: it is never computed. So a
        // context of n_ctx rows gives one token more than it has rows left; the
        // limit is drawn where prompt and answer together are n_ctx tokens.
        let room = n_ctx.saturating_sub(n_prompt);
        Slot {
            outbox: Outbox::new(sequence.events),
            prompt: sequence.prompt,
            n_prompt,
            position: 0,
            next_part: 0,
            next_row: 0,
            last_token: None,
            n_sampled: 0,
            max_tokens: sequence.max_tokens.map_or(room, |max| max.min(room)),
            sampler,
            detokenizer: Detokenizer::new(model.strips_leading_space()),
            stop: StopStrings::new(sequence.stop),
            stop_ids: sequence.stop_ids.into_iter().collect(),
            ignore_eos: sequence.ignore_eos,
            n_image,
            timings,
            admitted,
            first_token: None,
        }
    }

    /// Whether the whole prompt is in the KV cache.
    pub(super) fn generates(&self) -> bool {
        self.last_token.is_some()
    }

    /// Adds up to `most` of the rows that come next to the batch, as `sequence`.
    /// Returns how many, and the row whose logits give the next token, once the
    /// prompt is complete. Changes nothing here: see [`Slot::advance`].
    pub(super) fn add_rows(
        &self,
        sequence: usize,
        most: usize,
        context: &mut Context,
        n_embd: usize,
    ) -> Result<(usize, Option<Row>)> {
        if most == 0 {
            return Ok((0, None));
        }
        if let Some(id) = self.last_token {
            let row = context.add_token(sequence, self.position, id, true)?;
            return Ok((1, Some(row)));
        }
        let (mut n, mut output) = (0, None);
        let mut first = self.next_row;
        for part in &self.prompt[self.next_part..] {
            let n_rows = part.n_rows(n_embd);
            for i in first..n_rows {
                if n == most {
                    return Ok((n, output));
                }
                let position = self.position + n;
                let last = position + 1 == self.n_prompt;
                let row = match part {
                    PromptPart::Tokens(ids) => {
                        context.add_token(sequence, position, ids[i], last)?
                    }
                    PromptPart::Embeddings(rows) => {
                        let values = &rows[i * n_embd..(i + 1) * n_embd];
                        context.add_embedding(sequence, position, values, last)?
                    }
                };
                n += 1;
                output = last.then_some(row);
            }
            first = 0;
        }
        Ok((n, output))
    }

    /// `n` rows of [`Slot::add_rows`] are in the KV cache now.
    pub(super) fn advance(&mut self, n: usize, n_embd: usize) {
        self.position += n;
        if self.last_token.take().is_some() {
            return;
        }
        self.next_row += n;
        while let Some(part) = self.prompt.get(self.next_part) {
            let n_rows = part.n_rows(n_embd);
            if self.next_row < n_rows {
                return;
            }
            self.next_row -= n_rows;
            self.next_part += 1;
        }
        // A soft prompt may be large and the answer long.
        self.prompt = Vec::new();
        self.next_part = 0;
    }

    /// Draws a token and tells the reader; true when the answer is complete.
    pub(super) fn sample(
        &mut self,
        logits: &[f32],
        model: &LanguageModel,
        candidates: &mut Candidates,
        bytes: &mut Vec<u8>,
    ) -> Result<bool> {
        let id = self.sampler.sample(logits, candidates)?;
        self.n_sampled += 1;
        if self.first_token.is_none() {
            let now = Instant::now();
            self.timings.prefill = now.duration_since(self.admitted).as_secs_f64();
            self.first_token = Some(now);
        }
        let ends =
            self.stop_ids.contains(&id) || (!self.ignore_eos && model.is_end_of_generation(id));
        if ends {
            self.token(id, String::new());
            let rest = self.rest();
            self.done(FinishReason::Stop, rest);
            return Ok(true);
        }
        bytes.clear();
        model.token_bytes_into(id, bytes);
        let mut text = String::new();
        self.detokenizer.push(bytes, &mut text);
        let (text, stopped) = self.stop.push(text);
        self.token(id, text);
        if stopped {
            self.done(FinishReason::Stop, String::new());
            return Ok(true);
        }
        if self.n_sampled >= self.max_tokens {
            let rest = self.rest();
            self.done(FinishReason::Length, rest);
            return Ok(true);
        }
        self.last_token = Some(id);
        Ok(false)
    }

    /// What was held back, at the end of an answer.
    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.detokenizer.finish(&mut text);
        let (mut text, stopped) = self.stop.push(text);
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }

    fn token(&mut self, id: i32, text: String) {
        self.outbox.push(Event::Token { id, text });
    }

    fn done(&mut self, finish_reason: FinishReason, text: String) {
        if let Some(first) = self.first_token {
            self.timings.decode = first.elapsed().as_secs_f64();
        }
        self.outbox.push(Event::Done(Summary {
            finish_reason,
            usage: Usage {
                prompt_tokens: self.n_prompt,
                image_tokens: self.n_image,
                completion_tokens: self.n_sampled,
            },
            timings: self.timings,
            text,
        }));
    }

    /// Tells the reader that this sequence failed.
    pub(super) fn fail(&mut self, error: Error) {
        self.outbox.push(Event::Error(error));
    }
}

impl PromptPart {
    fn n_rows(&self, n_embd: usize) -> usize {
        match self {
            PromptPart::Tokens(ids) => ids.len(),
            PromptPart::Embeddings(rows) => rows.len() / n_embd,
        }
    }
}
