//! Contexts and who holds what in them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::cells::{Admission, Cells, Op, RowKey};
use super::{EngineOptions, Need};
use crate::Result;
use crate::language_model::LanguageModel;
use crate::llama::{Context, ContextOptions};

/// One llama.cpp context, and who holds its sequences and cells.
///
/// A decoder-only model has one lane for all requests of a worker, so that each step is
/// one batch. An encoder-decoder has a lane for each request in flight: a context holds
/// one encoder's result only.
pub(super) struct Lane {
    pub(super) context: Context,
    pub(super) cells: Cells,
    /// Room for what [`Cells`] wants done, reused.
    ops: Vec<Op>,
    n_seq_max: usize,
    n_rows: usize,
    n_cells: usize,
}

/// What lanes are made from.
pub(super) struct Lanes {
    pub(super) model: Arc<LanguageModel>,
    pub(super) options: EngineOptions,
    /// Threads of each.
    pub(super) threads: usize,
    pub(super) abort: Arc<AtomicBool>,
}

/// Rows of an encoder's input are rounded up to a multiple of this, so that a lane
/// serves requests of about one length.
const ENCODER_ROWS: usize = 64;

impl Lanes {
    /// The lane of a decoder-only model, or a first one of an encoder-decoder.
    pub(super) fn first(&self) -> Result<Lane> {
        if self.model.is_encoder_decoder() {
            return self.make(1, ENCODER_ROWS, 1);
        }
        let options = &self.options;
        self.lane(
            options.slots + options.prefix_sequences,
            options.n_batch,
            options.n_ubatch,
            options.n_cells(),
        )
    }

    /// A lane of an encoder-decoder that is large enough for `need`.
    pub(super) fn sized(&self, need: &Need) -> Result<Lane> {
        self.make(need.sequences, need.n_prompt, need.cells)
    }

    fn make(&self, n_seq_max: usize, n_rows: usize, n_cells: usize) -> Result<Lane> {
        // The encoder takes its input in one piece.
        let n_rows = n_rows.max(n_seq_max).next_multiple_of(ENCODER_ROWS);
        // llama.cpp lowers n_batch to n_ctx.
        self.lane(n_seq_max, n_rows, n_rows, n_cells.max(n_rows))
    }

    fn lane(
        &self,
        n_seq_max: usize,
        n_batch: usize,
        n_ubatch: usize,
        n_cells: usize,
    ) -> Result<Lane> {
        let options = ContextOptions {
            n_ctx: n_cells,
            n_batch,
            n_ubatch,
            n_seq_max,
            cache_type: self.options.cache_type,
            flash_attention: self.options.flash_attention,
            threads: self.threads,
        };
        Ok(Lane {
            context: Context::new(self.model.clone(), &options, self.abort.clone())?,
            cells: Cells::new(n_cells, n_seq_max),
            ops: Vec::new(),
            n_seq_max,
            n_rows: n_batch,
            n_cells,
        })
    }
}

impl Lane {
    /// Whether no request is in it.
    pub(super) fn is_idle(&self) -> bool {
        self.cells.is_idle()
    }

    /// Gives a request its sequences, the first of them with the rows of its prompt
    /// that are in the KV cache already. `None` where requests hold too many.
    pub(super) fn admit(&mut self, need: &Need, prompt: &[RowKey]) -> Option<Admission> {
        let ops = &mut self.ops;
        let admission = self.cells.admit(prompt, need.sequences, need.cells, ops);
        self.apply();
        admission
    }

    /// Takes a request's sequences back; with `keep`, its rows stay for others.
    pub(super) fn finish(&mut self, sequences: &[usize], keep: bool) {
        self.cells.finish(sequences, keep, &mut self.ops);
        self.apply();
    }

    fn apply(&mut self) {
        for op in self.ops.drain(..) {
            match op {
                Op::Share { from, to, n } => self.context.fork_rows(from, to, n),
                Op::Truncate { sequence, n } => self.context.truncate(sequence, n),
            }
        }
    }

    /// Whether a request of an encoder-decoder fits into it.
    pub(super) fn fits(&self, need: &Need) -> bool {
        need.sequences <= self.n_seq_max
            && need.n_prompt <= self.n_rows
            && need.cells <= self.n_cells
    }
}
