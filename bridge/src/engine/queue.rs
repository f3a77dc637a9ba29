//! The requests that wait, and what the workers and their callers share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cells::RowKey;
use super::{Activity, Sequence};
use crate::event::Event;
use crate::stages::Running;
use crate::turns::Turns;
use crate::{Error, Result};

/// Pictures whose worker is remembered.
const HOMES: usize = 64;

/// A request in the queue.
pub(super) struct Waiting {
    pub(super) sequence: Sequence,
    pub(super) need: Need,
    /// Of each row of the prompt, or none where they are not to be shared.
    pub(super) keys: Vec<RowKey>,
    pub(super) queued: Running,
}

impl Waiting {
    /// Whether nobody waits for it any more, or it is too late to begin.
    fn is_over(&self) -> bool {
        self.sequence.events.is_closed() || self.sequence.is_late()
    }

    /// The first row of its first picture, where it may be shared.
    fn picture(&self) -> Option<RowKey> {
        let is_picture = |key: &&RowKey| matches!(key, RowKey::Embedding(_));
        self.keys.iter().find(is_picture).copied()
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Rows of the prompt, and the embedding rows among them.
    pub(super) n_prompt: usize,
    pub(super) n_image: usize,
    /// Most tokens of the answer.
    pub(super) max_tokens: usize,
    /// Sequences, one for each answer or beam.
    pub(super) sequences: usize,
    /// KV cells at most.
    pub(super) cells: usize,
}

/// A worker that asks for a request.
pub(super) struct Free<'a> {
    /// Its number.
    pub(super) worker: usize,
    /// Whether it has no request at all.
    pub(super) is_idle: bool,
    /// Whether it has room for one.
    pub(super) has_room: &'a dyn Fn(&Need) -> bool,
    /// Whether it is about to compute more rows that a prompt of these keys begins with.
    pub(super) is_ahead: &'a dyn Fn(&[RowKey]) -> bool,
}

/// What the workers and their callers share.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something has changed that who waits for a request should look at.
    changed: Condvar,
    pub(super) counters: Counters,
    /// Of each worker, where its cores are shared with pictures in turns.
    pub(super) turns: Vec<Turns>,
}

/// Written by the workers alone.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) steps: AtomicU64,
    pub(super) prompt_rows: AtomicU64,
    pub(super) reused_rows: AtomicU64,
    pub(super) kept_sequences: AtomicU64,
    pub(super) sampled_tokens: AtomicU64,
    pub(super) guessed_tokens: AtomicU64,
    pub(super) right_guesses: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    waiting: VecDeque<Waiting>,
    /// Which worker computed a picture's rows, the newest last; several may have.
    homes: VecDeque<(RowKey, usize)>,
    /// Requests that hold a slot, and the sequences they hold.
    active: usize,
    sequences: usize,
    /// The engine is being dropped.
    pub(super) shutdown: bool,
    /// A worker has ended.
    stopped: bool,
}

impl Queue {
    /// An empty one, of so many workers that take turns.
    pub(super) fn new(in_turns: usize) -> Queue {
        Queue {
            turns: (0..in_turns).map(|_| Turns::default()).collect(),
            ..Queue::default()
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing leaves the state half changed, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How busy the workers are.
    pub(super) fn activity(&self) -> Activity {
        let counters = &self.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.lock();
        Activity {
            active: state.active,
            sequences: state.sequences,
            waiting: state.waiting.len(),
            steps: count(&counters.steps),
            prompt_rows: count(&counters.prompt_rows),
            reused_rows: count(&counters.reused_rows),
            kept_sequences: count(&counters.kept_sequences),
            sampled_tokens: count(&counters.sampled_tokens),
            guessed_tokens: count(&counters.guessed_tokens),
            right_guesses: count(&counters.right_guesses),
        }
    }

    /// Puts a request at the end. At most `room` are active or wait.
    ///
    /// # Errors
    /// [`Error::QueueFull`], which names `limit`, and [`Error::Stopped`].
    pub(super) fn push(&self, waiting: Waiting, room: usize, limit: usize) -> Result<()> {
        let mut state = self.lock();
        if state.stopped {
            return Err(Error::Stopped);
        }
        if state.active + state.waiting.len() >= room {
            let is_wanted = |waiting: &Waiting| !waiting.sequence.events.is_closed();
            state.waiting.retain(is_wanted);
            if state.active + state.waiting.len() >= room {
                return Err(Error::QueueFull { limit });
            }
        }
        state.waiting.push_back(waiting);
        drop(state);
        // Not every worker has room for it.
        self.changed.notify_all();
        Ok(())
    }

    /// The request that `free` answers next; who is too late is told.
    pub(super) fn take(&self, free: &Free) -> Option<Waiting> {
        let mut state = self.lock();
        while let Some(place) = state.next_for(free) {
            let next = state.waiting.remove(place)?;
            if next.is_over() {
                // A fresh channel has room; a closed one has nobody to be told.
                let late = Event::Error(Error::QueueTimeout);
                let _ = next.sequence.events.try_send(late);
                continue;
            }
            state.active += 1;
            state.sequences += next.need.sequences;
            if let Some(picture) = next.picture() {
                state.remember(picture, free.worker);
            }
            return Some(next);
        }
        None
    }

    /// A request no longer holds its slot, nor so many sequences.
    pub(super) fn give_back(&self, sequences: usize) {
        let mut state = self.lock();
        state.active -= 1;
        state.sequences -= sequences;
    }

    /// Waits until something changes, for so long at most.
    pub(super) fn wait(&self, state: MutexGuard<'_, State>, longest: Option<Duration>) {
        match longest {
            Some(longest) => drop(self.changed.wait_timeout(state, longest)),
            None => drop(self.changed.wait(state)),
        }
    }

    /// Has the workers end.
    pub(super) fn shut_down(&self) {
        self.lock().shutdown = true;
        self.changed.notify_all();
    }

    /// A worker has ended: nobody is answered any more who has not begun.
    pub(super) fn stop(&self) -> VecDeque<Waiting> {
        let mut state = self.lock();
        state.stopped = true;
        std::mem::take(&mut state.waiting)
    }
}

impl State {
    /// Place of the request that `free` has to look at next: the oldest, but none that soon has more of its rows there, and
    /// of those about a picture that is with others none, unless it would be idle. Who needs more than is free is not
    /// overtaken, or it might wait for ever.
    pub(super) fn next_for(&self, free: &Free) -> Option<usize> {
        let is_for = |waiting: &Waiting| {
            let is_its = || free.is_idle || self.is_at_home(waiting, free.worker);
            waiting.is_over() || is_its() && !(free.is_ahead)(&waiting.keys)
        };
        let place = self.waiting.iter().position(is_for)?;
        let next = &self.waiting[place];
        (next.is_over() || (free.has_room)(&next.need)).then_some(place)
    }

    fn is_at_home(&self, waiting: &Waiting, worker: usize) -> bool {
        let Some(picture) = waiting.picture() else {
            return true;
        };
        let is_known = self.homes.iter().any(|(known, _)| *known == picture);
        !is_known || self.homes.contains(&(picture, worker))
    }

    fn remember(&mut self, picture: RowKey, worker: usize) {
        let home = (picture, worker);
        self.homes.retain(|known| *known != home);
        self.homes.push_back(home);
        if self.homes.len() > HOMES {
            self.homes.pop_front();
        }
    }
}
