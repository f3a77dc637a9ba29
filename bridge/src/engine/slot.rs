//! One admitted request, from its prompt to its last token.

use super::PromptPart;
use super::answer::{Answer, Ending, Limits};
use super::beam::{BeamSearch, Hypothesis, Step, log_softmax};
use super::cells::{Admission, RowKey};
use super::logprobs::logprobs;
use super::lookup::Lookup;
use super::outbox::Outbox;
use super::queue::Waiting;
use super::rules::Rules;
use super::sampling::{Candidates, PENALTY_WINDOW, Sampler, likeliest};
use super::stop::StopStrings;
use crate::constraint::Constraint;
use crate::event::{Event, Summary, TokenLogprob, TokenLogprobs, Usage};
use crate::language_model::LanguageModel;
use crate::llama::{Context, Row};
use crate::stages::{Running, Stage, Stages};
use crate::{Error, Result};

/// A request that holds KV cells.
pub(super) struct Slot {
    pub(super) outbox: Outbox,
    /// The lane whose context computes this.
    pub(super) lane: usize,
    /// Its sequences there. Answer or beam `i` is sequence `i`; the prompt is computed
    /// in the first, behind what others computed of it, and shared by all.
    pub(super) sequences: Vec<usize>,
    /// KV cells set aside for it.
    pub(super) cells: usize,
    /// What the encoder has yet to read, of an encoder-decoder.
    encoder_input: Vec<PromptPart>,
    /// What the decoder reads before it answers.
    prompt: Vec<PromptPart>,
    n_prompt: usize,
    /// What the rows of the prompt, and those of a single answer, are computed from;
    /// empty where they are not to be shared.
    keys: Vec<RowKey>,
    /// Rows of each sequence in the KV cache.
    position: usize,
    /// The part of the prompt that comes next, and the row in it.
    next_part: usize,
    next_row: usize,
    search: Search,
    rules: Rules,
    max_tokens: usize,
    usage: Usage,
    stages: Stages,
    /// Prefill, then decode, then nothing.
    running: Option<Running>,
    has_first_token: bool,
}

/// How tokens are chosen.
enum Search {
    /// Each answer by itself.
    Sample(Vec<Branch>),
    /// All at the end, when the beams are compared.
    Beams {
        beams: BeamSearch,
        /// The answers, of which nothing is known before.
        answers: Vec<Answer>,
    },
}

/// An answer that is drawn token by token.
struct Branch {
    answer: Answer,
    sampler: Sampler,
    constraint: Option<Constraint>,
    /// Likeliest tokens to tell with each, where log-probabilities are asked for.
    top_logprobs: Option<usize>,
    /// Its tokens, where they are given and not drawn.
    given: Option<Vec<i32>>,
    /// Guesses at what it goes on with.
    lookup: Option<Lookup>,
    /// Sum of the log-probabilities so far, where they are asked for.
    logprob: f64,
    is_done: bool,
}

/// What a step brought.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Whether the whole answer is there.
    pub(super) is_complete: bool,
    /// Rows of logits that a token was chosen by.
    pub(super) n_rows: usize,
    /// Tokens that were guessed of an answer, and those of them that were drawn.
    pub(super) guessed: usize,
    pub(super) right: usize,
    /// Rows of each sequence that stay in the KV cache, beside the first.
    pub(super) ahead: usize,
}

/// Room for one row of scores, reused by all slots of an engine.
pub(super) struct Scratch {
    candidates: Candidates,
    scores: Vec<f32>,
}

impl Scratch {
    pub(super) fn new(n_vocab: usize) -> Self {
        Scratch {
            candidates: Candidates::new(n_vocab),
            scores: Vec::with_capacity(n_vocab),
        }
    }
}

impl Slot {
    /// At most `prompt_lookup` tokens are guessed ahead.
    pub(super) fn new(
        waiting: Waiting,
        model: &LanguageModel,
        lane: usize,
        admission: Admission,
        prompt_lookup: usize,
    ) -> Slot {
        let Waiting {
            sequence,
            need,
            keys,
            queued,
        } = waiting;
        let Admission { sequences, shared } = admission;
        drop(queued);
        let running = Some(sequence.stages.begin(Stage::Prefill));
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
        // Stop ids may be text, a newline for one, that a form demands.
        let mut ends = match sequence.constraint {
            Some(_) => Vec::new(),
            None => sequence.stop_ids,
        };
        if !sequence.ignore_eos {
            ends.extend_from_slice(model.end_of_generation());
        }
        ends.sort_unstable();
        ends.dedup();
        let stop = StopStrings::new(match sequence.given.is_empty() {
            true => sequence.stop,
            false => Vec::new(),
        });
        let is_drawn = sequence.given.is_empty();
        let mut given = sequence.given.into_iter();
        let is_continued = sequence.continues_text;
        let answer = |choice| Answer::new(choice, model, is_continued, stop.clone());
        let search = if sampling.num_beams > 1 {
            Search::Beams {
                beams: BeamSearch::new(
                    sampling.num_beams,
                    sampling.length_penalty,
                    need.max_tokens,
                    ends.len(),
                ),
                answers: (0..sampling.n).map(answer).collect(),
            }
        } else {
            let skipped = prompt_ids.len().saturating_sub(PENALTY_WINDOW);
            let mut branch = |choice| {
                let mut sampler = Sampler::of_choice(sampling, choice, model.n_vocab());
                for &id in &prompt_ids[skipped..] {
                    sampler.accept(id);
                }
                Branch {
                    answer: answer(choice),
                    sampler,
                    constraint: sequence.constraint.as_ref().map(Constraint::fork),
                    top_logprobs: sequence.top_logprobs,
                    given: given.next(),
                    // The answers of one prompt go step by step, each as far as the others.
                    lookup: (prompt_lookup > 0 && sampling.n == 1 && is_drawn)
                        .then(|| Lookup::new(&prompt_ids, prompt_lookup)),
                    logprob: 0.0,
                    is_done: false,
                }
            };
            Search::Sample((0..sampling.n).map(&mut branch).collect())
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
            search,
            rules: Rules {
                logit_bias: sequence.logit_bias,
                repetition_penalty: sampling.repetition_penalty,
                prompt_ids: if sequence.penalize_prompt {
                    prompt_ids
                } else {
                    Vec::new()
                },
                min_tokens: sampling.min_tokens,
                ends,
            },
            max_tokens: need.max_tokens,
            usage: Usage {
                prompt_tokens: need.n_prompt,
                image_tokens: need.n_image,
                cached_tokens: shared,
                completion_tokens: 0,
            },
            stages: sequence.stages,
            running,
            has_first_token: false,
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

    /// Whether it has yet to compute rows of its prompt that another one, of these keys, would share.
    pub(super) fn is_ahead(&self, keys: &[RowKey]) -> bool {
        let shareable = &keys[..keys.len().saturating_sub(1)];
        let common = self.keys.iter().zip(shareable).take_while(|(a, b)| a == b);
        !self.generates() && common.count() > self.position
    }

    /// Adds up to `most` of the rows that come next to the batch, and to `outputs`
    /// those whose logits choose the next token, once the prompt is complete. Then there
    /// is one for each answer or beam, and behind it those of tokens that are expected.
    /// Returns how many rows. Changes nothing here: see [`Slot::advance`].
    pub(super) fn add_rows(
        &self,
        most: usize,
        context: &mut Context,
        n_embd: usize,
        outputs: &mut Vec<Row>,
    ) -> Result<usize> {
        if self.generates() {
            // All answers or none; n_batch has room for every sequence. And each as far
            // as the others, since they have one position.
            let last = self.last_tokens();
            let expected = last.iter().map(|(_, _, expected)| expected.len());
            let room = (most / last.len().max(1)).saturating_sub(1);
            let ahead = expected.min().unwrap_or(0).min(room);
            for &(sequence, id, expected) in &last {
                let ids = [id].into_iter().chain(expected[..ahead].iter().copied());
                for (position, id) in (self.position..).zip(ids) {
                    outputs.push(context.add_token(sequence, position, id, true)?);
                }
            }
            return Ok(last.len() * (1 + ahead));
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

    /// Of each answer or beam that goes on its sequence, its last token, and the tokens that
    /// are expected behind it.
    fn last_tokens(&self) -> Vec<(usize, i32, &[i32])> {
        let sequences = self.sequences.iter().copied();
        match &self.search {
            Search::Sample(branches) => branches
                .iter()
                .zip(sequences)
                .filter(|(branch, _)| !branch.is_done)
                .filter_map(|(branch, sequence)| {
                    let &id = branch.answer.ids().last()?;
                    Some((sequence, id, branch.expected(self.max_tokens)))
                })
                .collect(),
            Search::Beams { beams, .. } => beams
                .running()
                .iter()
                .zip(sequences)
                .filter_map(|(beam, sequence)| Some((sequence, *beam.ids.last()?, &[][..])))
                .collect(),
        }
    }

    /// Sequences that the next token is computed of.
    pub(super) fn n_running(&self) -> usize {
        match &self.search {
            Search::Sample(branches) => branches.iter().filter(|branch| !branch.is_done).count(),
            Search::Beams { beams, .. } => beams.running().len(),
        }
    }

    /// What the next `n` rows of the first sequence are computed from, as far as
    /// others may share them.
    pub(super) fn next_keys(&self, n: usize) -> &[RowKey] {
        let end = self.keys.len().min(self.position + n);
        self.keys.get(self.position..end).unwrap_or_default()
    }

    /// `n` rows of each sequence stay in the KV cache beside the one that
    /// [`Slot::advance`] knows of.
    pub(super) fn advance_by(&mut self, n: usize) {
        self.position += n;
    }

    /// `n` rows of [`Slot::add_rows`] are in the KV cache now; of an answer those of its last
    /// token, and what becomes of others [`Slot::choose`] tells.
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
    /// and tells the reader. Rows of tokens that were expected and did not come are taken
    /// out of the KV cache.
    pub(super) fn choose(
        &mut self,
        rows: &[Row],
        context: &mut Context,
        model: &LanguageModel,
        scratch: &mut Scratch,
    ) -> Result<Chosen> {
        if !self.has_first_token {
            self.has_first_token = true;
            self.running = None;
            self.running = Some(self.stages.begin(Stage::Decode));
        }
        let chosen = match self.search {
            Search::Sample(_) => self.sample(rows, context, model, scratch)?,
            Search::Beams { .. } => Chosen {
                is_complete: self.extend_beams(rows, context, model, scratch)?,
                n_rows: rows.len(),
                ..Chosen::default()
            },
        };
        if chosen.is_complete {
            self.running = None;
        }
        Ok(chosen)
    }

    /// Draws the next token of each answer that goes on, or the first of all from the
    /// prompt's one row, and more as long as it is the one that was expected.
    fn sample(
        &mut self,
        rows: &[Row],
        context: &mut Context,
        model: &LanguageModel,
        scratch: &mut Scratch,
    ) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        let max_tokens = self.max_tokens;
        let Search::Sample(branches) = &mut self.search else {
            return Ok(chosen);
        };
        let are_new = branches.iter().all(|branch| branch.answer.ids().is_empty());
        if are_new && let Some((&first, others)) = self.sequences.split_first() {
            for &other in others {
                context.fork(first, other);
            }
        }
        let n_running = branches.iter().filter(|branch| !branch.is_done).count();
        let n_each = match are_new {
            true => rows.len(),
            false => rows.len() / n_running.max(1),
        };
        let mut endings = Vec::new();
        let going_on = branches.iter_mut().filter(|branch| !branch.is_done);
        for (i, branch) in going_on.enumerate() {
            let first = if are_new { 0 } else { i * n_each };
            let rows = rows.get(first..first + n_each).unwrap_or_default();
            let expected = branch.expected(max_tokens);
            let expected = expected[..expected.len().min(n_each.saturating_sub(1))].to_vec();
            let mut n_drawn = 0;
            for (j, &row) in rows.iter().enumerate() {
                let logits = context.logits(row)?;
                let (id, logprobs) = branch.draw(logits, &self.rules, model, scratch)?;
                n_drawn += 1;
                if let Some(logprobs) = &logprobs {
                    branch.logprob += f64::from(logprobs.token.logprob);
                }
                if self.sequences.len() == 1 && !self.keys.is_empty() {
                    self.keys.push(RowKey::Token(id));
                }
                if let Some(lookup) = &mut branch.lookup {
                    lookup.push(id);
                }
                let is_last = branch.is_complete();
                let limits = match &branch.given {
                    None => Limits {
                        ends: &self.rules.ends,
                        max_tokens,
                    },
                    Some(given) => Limits {
                        ends: &[],
                        max_tokens: given.len(),
                    },
                };
                let answer = &mut branch.answer;
                let ending = answer.accept(id, logprobs, is_last, limits, model, &mut self.outbox);
                if let Some(ending) = ending {
                    branch.is_done = true;
                    let n_tokens = answer.ids().len();
                    let mean = |_| (branch.logprob / n_tokens as f64) as f32;
                    let mean_logprob = branch.top_logprobs.map(mean);
                    endings.push((answer.choice(), n_tokens, mean_logprob, ending));
                    break;
                }
                if expected.get(j) != Some(&id) {
                    break;
                }
            }
            chosen.n_rows += n_drawn;
            // The row of what was drawn last is not there yet.
            chosen.ahead = n_drawn.saturating_sub(1);
            if let Some(lookup) = &mut branch.lookup {
                lookup.learn(expected.len(), chosen.ahead);
                (chosen.guessed, chosen.right) = (expected.len(), chosen.ahead);
                if chosen.ahead < expected.len() {
                    context.truncate(self.sequences[0], self.position + chosen.ahead);
                }
            }
        }
        chosen.is_complete = branches.iter().all(|branch| branch.is_done);
        for (choice, n_tokens, mean_logprob, ending) in endings {
            self.done(choice, n_tokens, mean_logprob, ending);
        }
        Ok(chosen)
    }

    /// Takes a step of the beam search, and delivers the answers when it was the last.
    fn extend_beams(
        &mut self,
        rows: &[Row],
        context: &mut Context,
        model: &LanguageModel,
        scratch: &mut Scratch,
    ) -> Result<bool> {
        let Search::Beams { beams, answers } = &mut self.search else {
            return Ok(false);
        };
        for (beam, &row) in rows.iter().enumerate() {
            let logits = context.logits(row)?;
            likeliest(logits)?;
            let scores = &mut scratch.scores;
            scores.clear();
            scores.extend_from_slice(logits);
            log_softmax(scores);
            let ids = beams.running().get(beam).map_or(&[][..], |beam| &beam.ids);
            self.rules.apply(ids, None, scores);
            beams.offer(beam, scores);
        }
        let ends = |ids: &[i32], id: i32| {
            self.rules.ends.contains(&id)
                || (answers.first()).is_some_and(|answer| answer.completes_stop(ids, id, model))
        };
        if let Step::Continue(parents) = beams.step(ends) {
            fork(&mut self.sequences, &parents, context);
            return Ok(false);
        }
        let limits = Limits {
            ends: &self.rules.ends,
            max_tokens: self.max_tokens,
        };
        let best: Vec<Hypothesis> = beams.finished().to_vec();
        let mut endings = Vec::new();
        for (i, answer) in answers.iter_mut().enumerate() {
            let found = best.get(i).ok_or_else(|| Error::Decode {
                reason: format!("{} of {} beams found an answer", best.len(), i + 1),
            })?;
            // Ends where the search saw it end: by the same three rules.
            let ending = found
                .ids
                .iter()
                .find_map(|&id| answer.accept(id, None, false, limits, model, &mut self.outbox));
            let mean_logprob = Some(beams.mean_logprob(found));
            let (choice, n_tokens) = (answer.choice(), answer.ids().len());
            endings.extend(ending.map(|ending| (choice, n_tokens, mean_logprob, ending)));
        }
        for (choice, n_tokens, mean_logprob, ending) in endings {
            self.done(choice, n_tokens, mean_logprob, ending);
        }
        Ok(true)
    }

    fn done(
        &mut self,
        choice: usize,
        completion_tokens: usize,
        mean_logprob: Option<f32>,
        ending: Ending,
    ) {
        self.outbox.push(Event::Done(Summary {
            choice,
            finish_reason: ending.finish_reason,
            usage: Usage {
                completion_tokens,
                ..self.usage
            },
            timings: self.stages.timings(),
            text: ending.text,
            logprobs: ending.logprobs,
            mean_logprob,
        }));
    }

    /// Tells the reader that this request failed.
    pub(super) fn fail(&mut self, error: Error) {
        self.outbox.push(Event::Error(error));
    }
}

impl Branch {
    /// Tokens that are expected next, without the one that would be the last.
    fn expected(&self, max_tokens: usize) -> &[i32] {
        let n = self.answer.ids().len();
        if let Some(given) = &self.given {
            return given
                .get(n..given.len().saturating_sub(1))
                .unwrap_or_default();
        }
        let guess = self.lookup.as_ref().map_or(&[][..], Lookup::guess);
        &guess[..guess.len().min(max_tokens.saturating_sub(n + 1))]
    }

    /// The next token, and what the model made of it where that is asked for.
    fn draw(
        &mut self,
        logits: &[f32],
        rules: &Rules,
        model: &LanguageModel,
        scratch: &mut Scratch,
    ) -> Result<(i32, Option<TokenLogprobs>)> {
        let id = self.choose(logits, rules, scratch)?;
        let of_token = self.top_logprobs.map(|n| {
            let (logprob, top) = logprobs(logits, id, n);
            let token = |id, logprob| {
                let bytes = model.token_bytes(id);
                let text = match bytes.is_empty() {
                    true => model.token_text(id).unwrap_or_default(),
                    false => String::from_utf8_lossy(&bytes).into_owned(),
                };
                TokenLogprob {
                    id,
                    bytes,
                    text,
                    logprob,
                }
            };
            TokenLogprobs {
                token: token(id, logprob),
                top: top.into_iter().map(|(id, p)| token(id, p)).collect(),
            }
        });
        Ok((id, of_token))
    }

    /// The next token: the one that is given, or one drawn by the rules.
    fn choose(&mut self, logits: &[f32], rules: &Rules, scratch: &mut Scratch) -> Result<i32> {
        let ids = self.answer.ids();
        if let Some(&id) = self.given.as_ref().and_then(|given| given.get(ids.len())) {
            likeliest(logits)?;
            return Ok(id);
        }
        let allowed = match &mut self.constraint {
            Some(constraint) => Some(constraint.allowed()?),
            None => None,
        };
        let scores = if allowed.is_some() || rules.apply_after(ids.len()) {
            likeliest(logits)?;
            scratch.scores.clear();
            scratch.scores.extend_from_slice(logits);
            rules.apply(ids, allowed.as_ref(), &mut scratch.scores);
            &scratch.scores
        } else {
            logits
        };
        let id = self.sampler.sample(scores, &mut scratch.candidates)?;
        if let Some(constraint) = &mut self.constraint
            && !rules.ends.contains(&id)
        {
            constraint.accept(id)?;
        }
        Ok(id)
    }

    /// Whether the form that the answer must have lets nothing follow.
    fn is_complete(&self) -> bool {
        self.constraint
            .as_ref()
            .is_some_and(Constraint::is_complete)
    }
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
