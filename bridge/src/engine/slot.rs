//! One admitted request, from its prompt to its last token.

use std::time::Instant;

use super::beam::{BeamSearch, Step, log_softmax};
use super::cells::{Admission, RowKey};
use super::detokenize::Detokenizer;
use super::outbox::Outbox;
use super::rules::Rules;
use super::sampling::{Candidates, PENALTY_WINDOW, Sampler, likeliest};
use super::stop::StopStrings;
use super::{PromptPart, Waiting};
use crate::event::{Event, FinishReason, Summary, Timings, Usage};
use crate::language_model::LanguageModel;
use crate::llama::{Context, Row};
use crate::{Error, Result};

/// A request that holds KV cells.
pub(super) struct Slot {
    pub(super) outbox: Outbox,
    /// The lane whose context computes this.
    pub(super) lane: usize,
    /// Its sequences there. Beam `i` is sequence `i`; the prompt is computed in the
    /// first, behind what others computed of it, and shared by all.
    pub(super) sequences: Vec<usize>,
    /// KV cells set aside for it.
    pub(super) cells: usize,
    /// What the encoder has yet to read, of an encoder-decoder.
    encoder_input: Vec<PromptPart>,
    /// What the decoder reads before it answers.
    prompt: Vec<PromptPart>,
    n_prompt: usize,
    /// What the rows of the prompt, and without beams those of the answer, are
    /// computed from; empty where they are not to be shared.
    keys: Vec<RowKey>,
    /// Rows of each sequence in the KV cache.
    position: usize,
    /// The part of the prompt that comes next, and the row in it.
    next_part: usize,
    next_row: usize,
    choice: Choice,
    rules: Rules,
    /// Tokens of the answer; with beams only once it is chosen.
    answer: Vec<i32>,
    max_tokens: usize,
    detokenizer: Detokenizer,
    stop: StopStrings,
    usage: Usage,
    timings: Timings,
    admitted: Instant,
    first_token: Option<Instant>,
}

/// How the next token is chosen.
enum Choice {
    Sample(Sampler),
    Beams(BeamSearch),
}

/// Room for one row of scores, reused by all slots of an engine.
pub(super) struct Scratch {
    candidates: Candidates,
    scores: Vec<f32>,
    bytes: Vec<u8>,
}

impl Scratch {
    pub(super) fn new(n_vocab: usize) -> Self {
        Scratch {
            candidates: Candidates::new(n_vocab),
            scores: Vec::with_capacity(n_vocab),
            bytes: Vec::new(),
        }
    }
}

impl Slot {
    pub(super) fn new(
        waiting: Waiting,
        model: &LanguageModel,
        lane: usize,
        admission: Admission,
    ) -> Slot {
        let Waiting {
            sequence,
            need,
            keys,
            since,
        } = waiting;
        let Admission { sequences, shared } = admission;
        let admitted = Instant::now();
        let mut timings = sequence.timings;
        timings.queue = admitted.duration_since(since).as_secs_f64();
        let (encoder_input, prompt) = match model.decoder_start() {
            None => (Vec::new(), sequence.prompt),
            Some(start) => (sequence.prompt, vec![PromptPart::Tokens(vec![start])]),
        };
        let n_prompt = match model.decoder_start() {
            None => need.n_prompt,
            Some(_) => 1,
        };
        let sampling = &sequence.sampling;
        let prompt_ids: Vec<i32> = prompt
            .iter()
            .flat_map(|part| match part {
                PromptPart::Tokens(ids) => ids.as_slice(),
                PromptPart::Embeddings(_) => &[],
            })
            .copied()
            .collect();
        let mut ends = sequence.stop_ids;
        if !sequence.ignore_eos {
            ends.extend_from_slice(model.end_of_generation());
        }
        ends.sort_unstable();
        ends.dedup();
        let choice = if sampling.num_beams > 1 {
            Choice::Beams(BeamSearch::new(
                sampling.num_beams,
                sampling.length_penalty,
                need.max_tokens,
                ends.len(),
            ))
        } else {
            let mut sampler = Sampler::new(sampling, model.n_vocab());
            let skipped = prompt_ids.len().saturating_sub(PENALTY_WINDOW);
            for &id in &prompt_ids[skipped..] {
                sampler.accept(id);
            }
            Choice::Sample(sampler)
        };
        let mut slot = Slot {
            outbox: Outbox::new(sequence.events),
            lane,
            sequences,
            cells: need.cells,
            encoder_input,
            prompt,
            n_prompt,
            keys,
            position: 0,
            next_part: 0,
            next_row: 0,
            choice,
            rules: Rules {
                repetition_penalty: sampling.repetition_penalty,
                prompt_ids: if sequence.penalize_prompt {
                    prompt_ids
                } else {
                    Vec::new()
                },
                min_tokens: sampling.min_tokens,
                ends,
            },
            answer: Vec::new(),
            max_tokens: need.max_tokens,
            detokenizer: Detokenizer::new(model.strips_leading_space()),
            stop: StopStrings::new(sequence.stop),
            usage: Usage {
                prompt_tokens: need.n_prompt,
                image_tokens: need.n_image,
                cached_tokens: shared,
                completion_tokens: 0,
            },
            timings,
            admitted,
            first_token: None,
        };
        slot.advance(shared, model.n_embd());
        slot
    }

    /// Whether the encoder has not read its input yet.
    pub(super) fn awaits_encoder(&self) -> bool {
        !self.encoder_input.is_empty()
    }

    /// Runs the encoder over its whole input, for all sequences of this slot, and
    /// returns the rows of it.
    pub(super) fn encode(&mut self, context: &mut Context, n_embd: usize) -> Result<usize> {
        context.clear();
        let (first, others) = self.sequences.split_at(1);
        let mut position = 0;
        for part in &self.encoder_input {
            for i in 0..part.n_rows(n_embd) {
                let row = part.add_row(i, first[0], position, true, context)?;
                context.share(row, others)?;
                position += 1;
            }
        }
        context.encode().map_err(|error| Error::Decode {
            reason: format!("the encoder of {position} rows: {error}"),
        })?;
        self.encoder_input = Vec::new();
        Ok(position)
    }

    /// Whether the whole prompt is in the KV cache.
    pub(super) fn generates(&self) -> bool {
        self.position >= self.n_prompt
    }

    /// Adds up to `most` of the rows that come next to the batch, and to `outputs`
    /// those whose logits choose the next token, once the prompt is complete.
    /// Returns how many rows. Changes nothing here: see [`Slot::advance`].
    pub(super) fn add_rows(
        &self,
        most: usize,
        context: &mut Context,
        n_embd: usize,
        outputs: &mut Vec<Row>,
    ) -> Result<usize> {
        if self.generates() {
            let mut n = 0;
            // All beams or none; n_batch has room for every sequence.
            for (&sequence, id) in self.sequences.iter().zip(self.last_tokens()) {
                outputs.push(context.add_token(sequence, self.position, id, true)?);
                n += 1;
            }
            return Ok(n);
        }
        let mut n = 0;
        let mut first = self.next_row;
        for part in &self.prompt[self.next_part..] {
            for i in first..part.n_rows(n_embd) {
                if n == most {
                    return Ok(n);
                }
                let position = self.position + n;
                let is_last = position + 1 == self.n_prompt;
                let row = part.add_row(i, self.sequences[0], position, is_last, context)?;
                n += 1;
                if is_last {
                    outputs.push(row);
                }
            }
            first = 0;
        }
        Ok(n)
    }

    /// The last token of the answer, or of each beam.
    fn last_tokens(&self) -> Vec<i32> {
        match &self.choice {
            Choice::Sample(_) => self.answer.last().copied().into_iter().collect(),
            Choice::Beams(search) => search
                .running()
                .iter()
                .filter_map(|beam| beam.ids.last().copied())
                .collect(),
        }
    }

    /// What the next `n` rows of the first sequence are computed from, as far as
    /// others may share them.
    pub(super) fn next_keys(&self, n: usize) -> &[RowKey] {
        let end = self.keys.len().min(self.position + n);
        self.keys.get(self.position..end).unwrap_or_default()
    }

    /// `n` rows of [`Slot::add_rows`] are in the KV cache now.
    pub(super) fn advance(&mut self, n: usize, n_embd: usize) {
        if self.generates() {
            self.position += 1;
            return;
        }
        self.position += n;
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

    /// Chooses tokens by the logits of `rows`, those that [`Slot::add_rows`] named,
    /// and tells the reader; true when the answer is complete.
    pub(super) fn choose(
        &mut self,
        rows: &[Row],
        context: &mut Context,
        model: &LanguageModel,
        scratch: &mut Scratch,
    ) -> Result<bool> {
        if self.first_token.is_none() {
            let now = Instant::now();
            self.timings.prefill = now.duration_since(self.admitted).as_secs_f64();
            self.first_token = Some(now);
        }
        match &mut self.choice {
            Choice::Sample(sampler) => {
                let mut id = None;
                for &row in rows {
                    let logits = context.logits(row)?;
                    let logits = if self.rules.apply_after(self.answer.len()) {
                        scratch.scores.clear();
                        scratch.scores.extend_from_slice(logits);
                        self.rules.apply(&self.answer, &mut scratch.scores);
                        &scratch.scores
                    } else {
                        logits
                    };
                    id = Some(sampler.sample(logits, &mut scratch.candidates)?);
                }
                if !self.keys.is_empty() {
                    self.keys.extend(id.map(RowKey::Token));
                }
                Ok(id.is_some_and(|id| self.accept(id, model, &mut scratch.bytes)))
            }
            Choice::Beams(search) => {
                for (beam, &row) in rows.iter().enumerate() {
                    let logits = context.logits(row)?;
                    likeliest(logits)?;
                    let scores = &mut scratch.scores;
                    scores.clear();
                    scores.extend_from_slice(logits);
                    log_softmax(scores);
                    let ids = search.running().get(beam).map_or(&[][..], |beam| &beam.ids);
                    self.rules.apply(ids, scores);
                    search.offer(beam, scores);
                }
                let ends = |ids: &[i32], id: i32| {
                    self.rules.ends.contains(&id)
                        || (!self.stop.is_empty()
                            && completes_stop(&self.detokenizer, &self.stop, model, ids, id))
                };
                match search.step(ends) {
                    Step::Continue(parents) => {
                        fork(&mut self.sequences, &parents, context);
                        Ok(false)
                    }
                    Step::Done => {
                        let best =
                            search
                                .finished()
                                .first()
                                .cloned()
                                .ok_or_else(|| Error::Decode {
                                    reason: "no token is left for any beam".to_owned(),
                                })?;
                        // Ends where the search saw it end: by the same three rules.
                        Ok(best
                            .ids
                            .into_iter()
                            .any(|id| self.accept(id, model, &mut scratch.bytes)))
                    }
                }
            }
        }
    }

    /// Takes the next token of the answer and tells the reader; true when the
    /// answer is complete.
    fn accept(&mut self, id: i32, model: &LanguageModel, bytes: &mut Vec<u8>) -> bool {
        self.answer.push(id);
        if self.rules.ends.contains(&id) {
            self.token(id, String::new());
            let rest = self.rest();
            self.done(FinishReason::Stop, rest);
            return true;
        }
        bytes.clear();
        model.token_bytes_into(id, bytes);
        let mut text = String::new();
        self.detokenizer.push(bytes, &mut text);
        let (text, stopped) = self.stop.push(text);
        self.token(id, text);
        if stopped {
            self.done(FinishReason::Stop, String::new());
            return true;
        }
        if self.answer.len() >= self.max_tokens {
            let rest = self.rest();
            self.done(FinishReason::Length, rest);
            return true;
        }
        false
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
                completion_tokens: self.answer.len(),
                ..self.usage
            },
            timings: self.timings,
            text,
        }));
    }

    /// Tells the reader that this request failed.
    pub(super) fn fail(&mut self, error: Error) {
        self.outbox.push(Event::Error(error));
    }
}

/// Whether token `id` after `ids` completes a stop string.
fn completes_stop(
    detokenizer: &Detokenizer,
    stop: &StopStrings,
    model: &LanguageModel,
    ids: &[i32],
    id: i32,
) -> bool {
    let (mut detokenizer, mut stop) = (detokenizer.clone(), stop.clone());
    ids.iter().chain([&id]).any(|&id| {
        let mut text = String::new();
        detokenizer.push(&model.token_bytes(id), &mut text);
        stop.push(text).1
    })
}

/// Makes sequence `i` hold what sequence `parents[i]` holds. A parent's first child
/// stays in the parent's sequence; the others share its cells from sequences whose
/// beams have no child.
fn fork(sequences: &mut Vec<usize>, parents: &[usize], context: &mut Context) {
    let old = std::mem::take(sequences);
    let mut has_child = vec![false; old.len()];
    let places: Vec<Option<usize>> = parents
        .iter()
        .map(|&parent| {
            let is_first = !std::mem::replace(&mut has_child[parent], true);
            is_first.then_some(old[parent])
        })
        .collect();
    let mut spare: Vec<usize> = old
        .iter()
        .zip(&has_child)
        .filter_map(|(&sequence, &has_child)| (!has_child).then_some(sequence))
        .collect();
    for &sequence in &spare {
        context.remove(sequence);
    }
    for (place, &parent) in places.into_iter().zip(parents) {
        let place = place.or_else(|| {
            let sequence = spare.pop()?;
            context.fork(old[parent], sequence);
            Some(sequence)
        });
        sequences.extend(place);
    }
    sequences.append(&mut spare);
}

impl PromptPart {
    pub(super) fn n_rows(&self, n_embd: usize) -> usize {
        match self {
            PromptPart::Tokens(ids) => ids.len(),
            PromptPart::Embeddings(rows) => rows.len() / n_embd,
        }
    }

    /// Adds row `i` of this part to the batch.
    fn add_row(
        &self,
        i: usize,
        sequence: usize,
        position: usize,
        output: bool,
        context: &mut Context,
    ) -> Result<Row> {
        match self {
            PromptPart::Tokens(ids) => context.add_token(sequence, position, ids[i], output),
            PromptPart::Embeddings(rows) => {
                let n_embd = context.n_embd();
                let values = &rows[i * n_embd..(i + 1) * n_embd];
                context.add_embedding(sequence, position, values, output)
            }
        }
    }
}
