//! Sizes of an engine.

use std::num::NonZeroUsize;

use super::{CacheType, FlashAttention};
use crate::llama::{self, MAX_SEQUENCES};
use crate::{Error, Result};

/// Sizes of an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Sequences that are computed at once, 1 to 256. A request takes one, or one
    /// for each of its answers or beams.
    pub slots: usize,
    /// Rows that one sequence may hold, prompt and answer together. Lowered to what
    /// the model was trained for.
    ///
    /// Of an encoder-decoder: rows of the encoder's input, and tokens of the answer
    /// with the one that the decoder starts from, each. Its positions are relative,
    /// so it is not lowered.
    pub n_ctx: usize,
    /// Whole sequences of `n_ctx` rows that the KV cache has room for; `slots` where
    /// none is given. A request waits until the rows that it may need are free: its
    /// prompt, once for all its answers, and `max_tokens` for each. So beams do with
    /// fewer. Not for an encoder-decoder, whose requests bring their own cache.
    pub cache_sequences: Option<usize>,
    /// Sequences beside the slots that are kept when they have finished, so that
    /// requests that begin alike need not compute the same rows again; 0 shares
    /// nothing. What was used longest ago makes way for requests that need its cells
    /// or its sequence. Each costs a row of logits. Lowered to what the slots leave of
    /// 256, and to 0 for a model whose KV cache forgets (a sliding window, a recurrent
    /// state) and for an encoder-decoder.
    pub prefix_sequences: usize,
    /// Most rows of one step, over all sequences. An encoder takes its input whole,
    /// whatever this and `n_ubatch` say.
    pub n_batch: usize,
    /// Most rows that are computed at once, by all workers together; a larger step is split.
    pub n_ubatch: usize,
    /// Requests that may wait for a slot; more are refused.
    pub queue: usize,
    /// Element type of the KV cache.
    pub cache_type: CacheType,
    /// Whether attention runs as one fused operation.
    pub flash_attention: FlashAttention,
    /// Threads of the CPU backend; `None` takes one for each physical core.
    ///
    /// llama.cpp's threads (GNU OpenMP) spin while they wait for each other. On a
    /// machine whose cores are busy with something else, such as the pictures of
    /// other requests, that costs 10 to 20 times the time (measured: 32 tokens of a
    /// 135M model on 2 busy cores took 8 to 24 s, 0.7 to 1.3 s with
    /// `OMP_WAIT_POLICY=passive`). The runtime reads that variable before `main`, so
    /// only whoever starts the process can set it.
    pub threads: Option<usize>,
    /// Most tokens to guess ahead, from where the last ones stood before in the prompt's text or in
    /// the answer (prompt lookup decoding); 0 guesses nothing. Right guesses come at the price of
    /// one token, wrong ones cost a part of it. Not for several answers to one prompt, nor for a
    /// model whose KV cache forgets or an encoder-decoder.
    pub prompt_lookup: usize,
    /// Whether only the time for all requests together counts, not how soon a single token
    /// comes: prompts take what room a step has, and on a CPU pictures and steps are computed in
    /// turns.
    pub for_throughput: bool,
    /// Threads that answer side by side, each with a context of its own, in which it has its share of the slots, of the KV
    /// cache and of `threads`. A request is computed by one of them. Each reads all weights for the rows of its own
    /// requests, but threads of different workers never wait for each other. `None` takes one; where only throughput counts,
    /// on a CPU and with a small language model, one for four requests at once, as long as there are threads.
    pub workers: Option<usize>,
}

/// Requests at once that make a worker worth its while: llama.cpp's products on a CPU take four rows at a time.
const WORKER_REQUESTS: usize = 4;

/// Bytes of the largest language model that has several workers unasked. One of 0.8 GB was no faster with two; the larger it
/// is, the more the memory limits how often its weights can be read.
const WORKER_WEIGHTS: u64 = 512 << 20;

/// Fewer rows are not computed at once, however many workers there are.
const WORKER_ROWS: usize = 64;

impl EngineOptions {
    /// KV cells of a decoder-only model's context, of which each worker has one.
    pub(crate) fn n_cells(&self) -> usize {
        let sequences = self.sequences_in_cache().div_ceil(self.n_workers());
        sequences.saturating_mul(self.n_ctx)
    }

    fn sequences_in_cache(&self) -> usize {
        self.cache_sequences.unwrap_or(self.slots)
    }

    /// Workers, once settled.
    pub(crate) fn n_workers(&self) -> usize {
        self.workers.unwrap_or(1)
    }

    /// Slots and threads of a worker.
    pub(crate) fn share(&self, worker: usize) -> (usize, usize) {
        let share = |all: usize| (all + worker) / self.n_workers();
        (share(self.slots), share(self.threads.unwrap_or(1)))
    }

    /// Whether pictures and steps are computed in turns: where both are, on a CPU.
    pub(crate) fn has_turns(&self) -> bool {
        self.for_throughput && !llama::devices().iter().any(|device| device.is_gpu)
    }

    /// Fills in and checks the sizes.
    pub(crate) fn settled(mut self, limits: &Limits) -> Result<EngineOptions> {
        let refused = |reason: String| Err(Error::Context { reason });
        if !(1..=MAX_SEQUENCES).contains(&self.slots) {
            return refused(format!(
                "{} slots asked for, 1 to {MAX_SEQUENCES} are possible",
                self.slots
            ));
        }
        if self.cache_sequences == Some(0) {
            return refused("a KV cache of 0 sequences (at least 1)".to_owned());
        }
        if self.n_ctx < 2 || self.n_batch == 0 || self.n_ubatch == 0 {
            return refused(format!(
                "n_ctx {} (at least 2), n_batch {} and n_ubatch {} (at least 1)",
                self.n_ctx, self.n_batch, self.n_ubatch
            ));
        }
        self.cache_type
            .check(self.flash_attention, limits.is_encoder_decoder)?;
        let trained = limits.n_ctx_train;
        // Learned positions end there, and llama.cpp reads past their table.
        if trained > 1 && self.n_ctx > trained && !limits.is_encoder_decoder {
            tracing::info!(
                "context lowered from {} to the {trained} that the model was trained for",
                self.n_ctx
            );
            self.n_ctx = trained;
        }
        self.prefix_sequences = match limits.shares_prefixes {
            true => self.prefix_sequences.min(MAX_SEQUENCES - self.slots),
            false => 0,
        };
        // Every sequence that generates must fit into one step.
        self.n_batch = self.n_batch.max(self.slots);
        self.n_ubatch = self.n_ubatch.min(self.n_batch);
        let threads = self.threads.unwrap_or_else(default_threads).max(1);
        self.threads = Some(threads);
        let requests = self.slots.min(self.sequences_in_cache());
        let workers = match self.workers {
            Some(workers) => workers.min(requests),
            None if limits.weights <= WORKER_WEIGHTS && self.has_turns() => {
                requests / WORKER_REQUESTS
            }
            None => 1,
        };
        let workers = workers.clamp(1, threads);
        self.workers = Some(workers);
        // What is computed with stays as large.
        self.n_ubatch = (self.n_ubatch / workers).max(self.n_ubatch.min(WORKER_ROWS));
        Ok(self)
    }
}

/// What a language model allows an engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows that it was trained for; 0 where its file does not say.
    pub n_ctx_train: usize,
    pub is_encoder_decoder: bool,
    /// Whether its KV cache keeps every row.
    pub shares_prefixes: bool,
    /// Bytes of its weights.
    pub weights: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            slots: 4,
            n_ctx: 2048,
            cache_sequences: None,
            prefix_sequences: 32,
            n_batch: 512,
            n_ubatch: 512,
            queue: 64,
            cache_type: CacheType::F16,
            flash_attention: FlashAttention::Auto,
            threads: None,
            prompt_lookup: 0,
            for_throughput: false,
            workers: None,
        }
    }
}

/// One thread a physical core, of those this process may use: matrix products gain
/// nothing from the second thread of a core.
fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    num_cpus::get_physical().clamp(1, usable)
}
