//! A thread that owns contexts, and its steps.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::lane::{Lane, Lanes};
use super::outbox::Outbox;
use super::queue::{Free, Need, Queue};
use super::slot::{Scratch, Slot};
use crate::event::Event;
use crate::language_model::LanguageModel;
use crate::llama::{ProcessError, Row};
use crate::turns::Turns;
use crate::{Error, Result};

/// How long to wait for a reader when every sequence waits for one. A bounded
/// tokio channel cannot wake this thread.
const POLL: Duration = Duration::from_millis(2);

/// About how long the prompt rows of a step may take where as many others generate
/// beside them: that long their next tokens are late.
const PROMPT_SHARE: Duration = Duration::from_millis(100);

/// How many times longer they may take where that many more prompts wait than requests
/// generate: what one loses by it, each of the many gains.
const MAX_SHARES: usize = 5;

/// Prompt rows of such a step at least, and as long as nothing is known of their cost.
const PROMPT_ROWS: usize = 16;

/// What one request has in the current batch.
struct Share {
    slot: usize,
    n_rows: usize,
    /// Where its rows are in [`Worker::outputs`].
    outputs: Range<usize>,
}

pub(super) struct Worker {
    number: usize,
    lanes: Vec<Lane>,
    factory: Lanes,
    model: Arc<LanguageModel>,
    queue: Arc<Queue>,
    slots: Vec<Option<Slot>>,
    /// Occupied slots, oldest first.
    order: Vec<usize>,
    /// Its share of the slots and the KV cells that it has. Who needs more sequences has it
    /// to itself.
    most_sequences: usize,
    most_cells: usize,
    /// Sequences and cells that requests hold.
    sequences: usize,
    cells: usize,
    /// Sequences that are kept for requests to come.
    kept: usize,
    /// Seconds that a row of a large batch took lately; 0 before the first.
    row_seconds: f64,
    /// Finished requests whose reader has not taken everything yet.
    leaving: Vec<Outbox>,
    // Reused from step to step.
    shares: Vec<Share>,
    outputs: Vec<Row>,
    scratch: Scratch,
}

impl Worker {
    /// The worker of this number.
    pub(super) fn new(number: usize, factory: Lanes, queue: Arc<Queue>) -> Result<Self> {
        let options = &factory.options;
        let (most_sequences, _) = options.share(number);
        let model = factory.model.clone();
        Ok(Worker {
            number,
            lanes: vec![factory.first()?],
            queue,
            slots: Vec::with_capacity(options.slots),
            order: Vec::with_capacity(options.slots),
            most_sequences,
            // The lanes of an encoder-decoder have their own.
            most_cells: if model.is_encoder_decoder() {
                usize::MAX
            } else {
                options.n_cells()
            },
            sequences: 0,
            cells: 0,
            kept: 0,
            row_seconds: 0.0,
            leaving: Vec::new(),
            shares: Vec::with_capacity(options.slots),
            outputs: Vec::with_capacity(options.slots),
            scratch: Scratch::new(model.n_vocab()),
            factory,
            model,
        })
    }

    pub(super) fn run(mut self) {
        while self.wait() {
            self.cancel();
            self.admit();
            self.encode();
            for lane in 0..self.lanes.len() {
                self.build(lane, None);
                if !self.shares.is_empty() {
                    self.process(lane);
                }
            }
        }
    }

    /// Waits until there is something to do; false when the engine is dropped.
    fn wait(&mut self) -> bool {
        loop {
            self.leaving.retain_mut(|outbox| !outbox.flush());
            let mut runnable = false;
            for slot in self.slots.iter_mut().flatten() {
                // A closed channel counts: the slot must be freed.
                runnable |= slot.outbox.flush() || slot.outbox.is_closed();
            }
            let state = self.queue.lock();
            if state.shutdown {
                return false;
            }
            let can_admit = self.asking(|free| state.next_for(free).is_some());
            if runnable || can_admit {
                return true;
            }
            // Both waits may end early; the loop looks again.
            let is_alone = self.order.is_empty() && self.leaving.is_empty();
            self.queue.wait(state, (!is_alone).then_some(POLL));
        }
    }

    /// Asks the queue, as what this worker is.
    fn asking<T>(&self, ask: impl FnOnce(&Free) -> T) -> T {
        let is_idle = self.order.is_empty();
        ask(&Free {
            worker: self.number,
            is_idle,
            has_room: &|need| {
                is_idle
                    || self.sequences + need.sequences <= self.most_sequences
                        && self.cells.saturating_add(need.cells) <= self.most_cells
            },
            is_ahead: &|keys| self.slots.iter().flatten().any(|slot| slot.is_ahead(keys)),
        })
    }

    /// Frees the slots of requests whose reader has gone.
    fn cancel(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(slot) = &self.slots[index]
                && slot.outbox.is_closed()
            {
                self.free(index, false);
            }
        }
    }

    /// Admits those who waited longest.
    fn admit(&mut self) {
        while let Some(waiting) = self.asking(|free| self.queue.take(free)) {
            let n = waiting.need.sequences;
            let queue = self.queue.clone();
            let refused = |error| {
                queue.give_back(n);
                Outbox::new(waiting.sequence.events.clone()).push(Event::Error(error));
            };
            let lane = match self.lane_for(&waiting.need) {
                Ok(lane) => lane,
                Err(error) => {
                    refused(error);
                    continue;
                }
            };
            let Some(admission) = self.lanes[lane].admit(&waiting.need, &waiting.keys) else {
                let reason = format!("no {n} sequences are free");
                refused(Error::Decode { reason });
                continue;
            };
            let reused_rows = &self.queue.counters.reused_rows;
            reused_rows.fetch_add(admission.shared as u64, Ordering::Relaxed);
            self.sequences += n;
            self.cells = self.cells.saturating_add(waiting.need.cells);
            // Who forgets rows cannot take any back.
            let prompt_lookup = match self.model.shares_prefixes() {
                true => self.factory.options.prompt_lookup,
                false => 0,
            };
            let slot = Slot::new(waiting, &self.model, lane, admission, prompt_lookup);
            let free = self.slots.iter().position(Option::is_none);
            let index = free.unwrap_or(self.slots.len());
            match self.slots.get_mut(index) {
                Some(free) => *free = Some(slot),
                None => self.slots.push(Some(slot)),
            }
            self.order.push(index);
        }
        self.count_kept();
    }

    /// Tells how much of the KV cache is kept for requests to come.
    fn count_kept(&mut self) {
        let kept: usize = self.lanes.iter().map(|lane| lane.cells.kept()).sum();
        let kept_sequences = &self.queue.counters.kept_sequences;
        kept_sequences.fetch_add(kept as u64, Ordering::Relaxed);
        kept_sequences.fetch_sub(self.kept as u64, Ordering::Relaxed);
        self.kept = kept;
    }

    /// The lane that computes a request; for an encoder-decoder an idle one, made
    /// anew where none is large enough.
    fn lane_for(&mut self, need: &Need) -> Result<usize> {
        if !self.model.is_encoder_decoder() {
            return Ok(0);
        }
        let idle = |lane: &Lane| lane.is_idle();
        if let Some(lane) = self.lanes.iter().position(|l| idle(l) && l.fits(need)) {
            return Ok(lane);
        }
        let lane = self.factory.sized(need)?;
        match self.lanes.iter().position(idle) {
            Some(index) => {
                self.lanes[index] = lane;
                Ok(index)
            }
            None => {
                self.lanes.push(lane);
                Ok(self.lanes.len() - 1)
            }
        }
    }

    /// Runs the encoder of an encoder-decoder for requests newly admitted.
    fn encode(&mut self) {
        for index in self.order.clone() {
            let Some(slot) = &mut self.slots[index] else {
                continue;
            };
            if !slot.awaits_encoder() {
                continue;
            }
            let context = &mut self.lanes[slot.lane].context;
            match slot.encode(context, self.model.n_embd()) {
                Ok(n_rows) => {
                    let prompt_rows = &self.queue.counters.prompt_rows;
                    prompt_rows.fetch_add(n_rows as u64, Ordering::Relaxed);
                }
                // The engine being dropped looks like a failure here, and nobody
                // is left to read of it.
                Err(error) => self.fail(index, error),
            }
        }
    }

    /// Fills the batch of a lane: the next token of each request that generates,
    /// then prompt rows, oldest request first, and beside the former no more than
    /// [`Worker::prompt_rows_beside_others`]. `only` builds it of one request.
    fn build(&mut self, lane: usize, only: Option<usize>) {
        let prompt_rows = self.prompt_rows_beside_others(lane);
        let context = &mut self.lanes[lane].context;
        context.clear();
        self.shares.clear();
        self.outputs.clear();
        let mut most = context.n_batch();
        let mut failed = Vec::new();
        for prompts in [false, true] {
            if prompts && context.n_rows() > 0 {
                most = most.min(context.n_rows().saturating_add(prompt_rows));
            }
            let takes_part = |index: usize| {
                self.slots[index].as_ref().filter(|slot| {
                    slot.lane == lane
                        && slot.generates() != prompts
                        && !slot.awaits_encoder()
                        && slot.outbox.is_empty()
                        && only.is_none_or(|only| only == index)
                })
            };
            // The next token of everybody comes before those that are expected behind it, and so
            // does the output of prompts that may end in this step.
            let mut next = match prompts {
                true => 0,
                false => (self.order.iter())
                    .filter_map(|&index| takes_part(index))
                    .map(Slot::n_running)
                    .sum(),
            };
            let n_slots = self.order.len();
            for &index in &self.order {
                let Some(slot) = takes_part(index) else {
                    continue;
                };
                if !prompts {
                    next -= slot.n_running();
                }
                let room = (most - context.n_rows()).saturating_sub(next);
                let room = match prompts {
                    true => room,
                    false => room.min(context.outputs_left().saturating_sub(next + n_slots)),
                };
                let first = self.outputs.len();
                match slot.add_rows(room, context, self.model.n_embd(), &mut self.outputs) {
                    Ok(0) => {}
                    Ok(n_rows) => self.shares.push(Share {
                        slot: index,
                        n_rows,
                        outputs: first..self.outputs.len(),
                    }),
                    Err(error) => failed.push((index, error)),
                }
            }
        }
        // Whatever a failed request put into the batch must not be computed.
        if !failed.is_empty() {
            for (index, error) in failed {
                self.fail(index, error);
            }
            self.build(lane, only);
        }
    }

    /// Rows of prompts that take no longer than [`PROMPT_SHARE`], or up to
    /// [`MAX_SHARES`] of it where more requests wait for their first token than generate; any
    /// number where nobody waits for a single token.
    fn prompt_rows_beside_others(&self, lane: usize) -> usize {
        if self.factory.options.for_throughput {
            return usize::MAX;
        }
        if self.row_seconds <= 0.0 {
            return PROMPT_ROWS;
        }
        let (mut generate, mut wait) = (0, 0);
        for slot in self.slots.iter().flatten() {
            if slot.lane == lane && slot.outbox.is_empty() {
                match slot.generates() {
                    true => generate += 1,
                    false => wait += 1,
                }
            }
        }
        let shares = (wait / generate.max(1)).clamp(1, MAX_SHARES);
        let rows = shares as f64 * PROMPT_SHARE.as_secs_f64() / self.row_seconds;
        (rows as usize).max(PROMPT_ROWS)
    }

    /// Computes the batch and chooses tokens. When it fails, what can be saved is
    /// tried again request by request, so that one cannot harm the others.
    fn process(&mut self, lane: usize) {
        let turn = self.queue.turns.get(self.number).map(Turns::take);
        let started = Instant::now();
        let processed = self.lanes[lane].context.process();
        drop(turn);
        let n_rows = self.lanes[lane].context.n_rows();
        if processed.is_ok() && n_rows >= PROMPT_ROWS {
            let seconds = started.elapsed().as_secs_f64() / n_rows as f64;
            let before = self.row_seconds;
            self.row_seconds = if before > 0.0 {
                0.75 * before + 0.25 * seconds
            } else {
                seconds
            };
        }
        match processed {
            Ok(()) => self.choose(lane),
            // Only set when the engine is dropped: the next wait sees it.
            Err(ProcessError::Aborted) => {}
            Err(ProcessError::NoRoom | ProcessError::Refused) if self.shares.len() > 1 => {
                let slots: Vec<usize> = self.shares.iter().map(|share| share.slot).collect();
                for index in slots {
                    self.build(lane, Some(index));
                    if !self.shares.is_empty() {
                        self.process(lane);
                    }
                }
            }
            Err(error) => {
                tracing::warn!("a step of {n_rows} rows failed: {error}");
                for share in std::mem::take(&mut self.shares) {
                    let reason = error.to_string();
                    self.fail(share.slot, Error::Decode { reason });
                }
            }
        }
    }

    /// Chooses the next tokens of each request whose logits came.
    fn choose(&mut self, lane: usize) {
        let shares = std::mem::take(&mut self.shares);
        let outputs = std::mem::take(&mut self.outputs);
        let queue = self.queue.clone();
        let counters = &queue.counters;
        let prompt_rows: usize = shares
            .iter()
            .filter(|share| {
                let slot = &self.slots[share.slot];
                slot.as_ref().is_some_and(|slot| !slot.generates())
            })
            .map(|share| share.n_rows)
            .sum();
        counters.steps.fetch_add(1, Ordering::Relaxed);
        counters
            .prompt_rows
            .fetch_add(prompt_rows as u64, Ordering::Relaxed);
        for share in &shares {
            let Some(slot) = &mut self.slots[share.slot] else {
                continue;
            };
            let lane = &mut self.lanes[lane];
            lane.cells
                .computed(slot.sequences[0], slot.next_keys(share.n_rows));
            slot.advance(share.n_rows, self.model.n_embd());
            if share.outputs.is_empty() {
                continue;
            }
            let context = &mut lane.context;
            let rows = &outputs[share.outputs.clone()];
            let chosen = match slot.choose(rows, context, &self.model, &mut self.scratch) {
                Ok(chosen) => chosen,
                Err(error) => {
                    self.fail(share.slot, error);
                    continue;
                }
            };
            lane.cells
                .computed(slot.sequences[0], slot.next_keys(chosen.ahead));
            slot.advance_by(chosen.ahead);
            for (counter, n) in [
                (&counters.sampled_tokens, chosen.n_rows),
                (&counters.guessed_tokens, chosen.guessed),
                (&counters.right_guesses, chosen.right),
            ] {
                counter.fetch_add(n as u64, Ordering::Relaxed);
            }
            if chosen.is_complete {
                self.free(share.slot, true);
            }
        }
        self.shares = shares;
        self.outputs = outputs;
    }

    fn fail(&mut self, index: usize, error: Error) {
        if let Some(slot) = &mut self.slots[index] {
            slot.fail(error);
        }
        self.free(index, false);
    }

    /// Takes a request out of its slot. With `keep`, what it computed stays in the KV
    /// cache for requests that begin alike.
    fn free(&mut self, index: usize, keep: bool) {
        let Some(slot) = self.slots[index].take() else {
            return;
        };
        let lane = &mut self.lanes[slot.lane];
        let n = slot.sequences.len();
        lane.finish(&slot.sequences, keep);
        self.count_kept();
        self.sequences -= n;
        self.cells -= slot.cells;
        self.order.retain(|&occupied| occupied != index);
        if !slot.outbox.is_empty() {
            self.leaving.push(slot.outbox);
        }
        self.queue.give_back(n);
    }
}

impl Drop for Worker {
    /// Runs when the engine is dropped, and when this thread panics: nobody is
    /// left waiting without a word.
    fn drop(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.fail(Error::Stopped);
            self.queue.give_back(slot.sequences.len());
        }
        for waiting in self.queue.stop() {
            let stopped = Event::Error(Error::Stopped);
            // A fresh channel has room; if not, its closing says the same.
            if let Err(TrySendError::Full(_)) = waiting.sequence.events.try_send(stopped) {
                tracing::debug!("a waiting sequence could not be told that the engine stopped");
            }
        }
    }
}
