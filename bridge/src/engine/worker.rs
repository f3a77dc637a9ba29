//! The thread that owns the context, and its steps.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;

use super::outbox::Outbox;
use super::sampling::Candidates;
use super::slot::Slot;
use super::{EngineOptions, Shared};
use crate::Error;
use crate::event::Event;
use crate::language_model::LanguageModel;
use crate::llama::{Context, ProcessError, Row};

/// How long to wait for a reader when every sequence waits for one. A bounded
/// tokio channel cannot wake this thread.
const POLL: Duration = Duration::from_millis(2);

/// What one sequence has in the current batch.
struct Share {
    slot: usize,
    n_rows: usize,
    logits: Option<Row>,
}

pub(super) struct Worker {
    context: Context,
    model: Arc<LanguageModel>,
    shared: Arc<Shared>,
    n_ctx: usize,
    slots: Vec<Option<Slot>>,
    /// Occupied slots, oldest first.
    order: Vec<usize>,
    /// Finished sequences whose reader has not taken everything yet.
    leaving: Vec<Outbox>,
    // Reused from step to step.
    shares: Vec<Share>,
    candidates: Candidates,
    bytes: Vec<u8>,
}

impl Worker {
    pub(super) fn new(
        context: Context,
        model: Arc<LanguageModel>,
        shared: Arc<Shared>,
        options: &EngineOptions,
    ) -> Self {
        Worker {
            context,
            shared,
            n_ctx: options.n_ctx,
            slots: (0..options.slots).map(|_| None).collect(),
            order: Vec::with_capacity(options.slots),
            leaving: Vec::new(),
            shares: Vec::with_capacity(options.slots),
            candidates: Candidates::new(model.n_vocab()),
            bytes: Vec::new(),
            model,
        }
    }

    pub(super) fn run(mut self) {
        while self.wait() {
            self.cancel();
            self.admit();
            self.build(None);
            if !self.shares.is_empty() {
                self.process();
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
            let state = self.shared.lock();
            if state.shutdown {
                return false;
            }
            let can_admit = !state.waiting.is_empty() && self.order.len() < self.slots.len();
            if runnable || can_admit {
                return true;
            }
            // Both waits may end early; the loop looks again.
            if self.order.is_empty() && self.leaving.is_empty() {
                drop(self.shared.wake.wait(state));
            } else {
                drop(self.shared.wake.wait_timeout(state, POLL));
            }
        }
    }

    /// Frees the slots of sequences whose reader has gone.
    fn cancel(&mut self) {
        for index in 0..self.slots.len() {
            if let Some(slot) = &self.slots[index]
                && slot.outbox.is_closed()
            {
                self.free(index);
            }
        }
    }

    /// Gives free slots to those who waited longest.
    fn admit(&mut self) {
        let mut state = self.shared.lock();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.is_some() {
                continue;
            }
            let next = loop {
                match state.waiting.pop_front() {
                    Some(waiting) if waiting.sequence.events.is_closed() => {}
                    next => break next,
                }
            };
            let Some(waiting) = next else {
                return;
            };
            *slot = Some(Slot::new(waiting, &self.model, self.n_ctx));
            self.order.push(index);
            state.active += 1;
        }
    }

    /// Fills the batch: a token of each sequence that generates, then prompt rows,
    /// oldest sequence first. `only` builds it of one sequence.
    fn build(&mut self, only: Option<usize>) {
        self.context.clear();
        self.shares.clear();
        let mut failed = Vec::new();
        for prompts in [false, true] {
            for &index in &self.order {
                let Some(slot) = &self.slots[index] else {
                    continue;
                };
                if slot.generates() == prompts
                    || !slot.outbox.is_empty()
                    || only.is_some_and(|only| only != index)
                {
                    continue;
                }
                let room = self.context.n_batch() - self.context.n_rows();
                match slot.add_rows(index, room, &mut self.context, self.model.n_embd()) {
                    Ok((0, _)) => {}
                    Ok((n_rows, logits)) => self.shares.push(Share {
                        slot: index,
                        n_rows,
                        logits,
                    }),
                    Err(error) => failed.push((index, error)),
                }
            }
        }
        // Whatever a failed sequence put into the batch must not be computed.
        if !failed.is_empty() {
            for (index, error) in failed {
                self.fail(index, error);
            }
            self.build(only);
        }
    }

    /// Computes the batch and samples. When it fails, what can be saved is tried
    /// again sequence by sequence, so that one cannot harm the others.
    fn process(&mut self) {
        match self.context.process() {
            Ok(()) => self.sample(),
            // Only set when the engine is dropped: the next wait sees it.
            Err(ProcessError::Aborted) => {}
            Err(ProcessError::NoRoom | ProcessError::Refused) if self.shares.len() > 1 => {
                let slots: Vec<usize> = self.shares.iter().map(|share| share.slot).collect();
                for index in slots {
                    self.build(Some(index));
                    if !self.shares.is_empty() {
                        self.process();
                    }
                }
            }
            Err(error) => {
                tracing::warn!("a step of {} rows failed: {error}", self.context.n_rows());
                for share in std::mem::take(&mut self.shares) {
                    let reason = error.to_string();
                    self.fail(share.slot, Error::Decode { reason });
                }
            }
        }
    }

    /// Draws a token for each sequence whose logits came.
    fn sample(&mut self) {
        let shares = std::mem::take(&mut self.shares);
        let counters = &self.shared.counters;
        let (mut prompt_rows, mut sampled) = (0, 0);
        for share in &shares {
            let Some(slot) = &self.slots[share.slot] else {
                continue;
            };
            prompt_rows += if slot.generates() {
                0
            } else {
                share.n_rows as u64
            };
            sampled += u64::from(share.logits.is_some());
        }
        counters.steps.fetch_add(1, Ordering::Relaxed);
        counters
            .prompt_rows
            .fetch_add(prompt_rows, Ordering::Relaxed);
        counters
            .sampled_tokens
            .fetch_add(sampled, Ordering::Relaxed);
        for share in &shares {
            let Some(slot) = &mut self.slots[share.slot] else {
                continue;
            };
            slot.advance(share.n_rows, self.model.n_embd());
            let Some(row) = share.logits else {
                continue;
            };
            let outcome = self.context.logits(row).and_then(|logits| {
                slot.sample(logits, &self.model, &mut self.candidates, &mut self.bytes)
            });
            match outcome {
                Ok(false) => {}
                Ok(true) => self.free(share.slot),
                Err(error) => self.fail(share.slot, error),
            }
        }
        self.shares = shares;
    }

    fn fail(&mut self, index: usize, error: Error) {
        if let Some(slot) = &mut self.slots[index] {
            slot.fail(error);
        }
        self.free(index);
    }

    /// Takes a sequence out of its slot and out of the KV cache.
    fn free(&mut self, index: usize) {
        let Some(slot) = self.slots[index].take() else {
            return;
        };
        self.context.remove(index);
        self.order.retain(|&occupied| occupied != index);
        if !slot.outbox.is_empty() {
            self.leaving.push(slot.outbox);
        }
        self.shared.lock().active -= 1;
    }
}

impl Drop for Worker {
    /// Runs when the engine is dropped, and when this thread panics: nobody is
    /// left waiting without a word.
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.shared.lock();
            state.stopped = true;
            state.active = 0;
            std::mem::take(&mut state.waiting)
        };
        for slot in self.slots.iter_mut().flatten() {
            slot.fail(Error::Stopped);
        }
        for waiting in waiting {
            let stopped = Event::Error(Error::Stopped);
            // A fresh channel has room; if not, its closing says the same.
            if let Err(TrySendError::Full(_)) = waiting.sequence.events.try_send(stopped) {
                tracing::debug!("a waiting sequence could not be told that the engine stopped");
            }
        }
    }
}
