//! The engine: one thread owns the llama.cpp context and answers many sequences
//! at once.
//!
//! Every step builds one batch: one token of each sequence that is generating,
//! beside prompt rows (tokens and embeddings in any order) of the sequences that
//! were admitted, oldest first, until `n_batch` rows are reached. A longer prompt
//! goes on in the next step, and the others generate meanwhile.
//!
//! A beam search, or several answers to one prompt, is one request with several
//! sequences: its prompt is computed once and the sequences share its KV cells. An encoder-decoder (T5) has a context for
//! each request in flight, since a context holds one encoder's result only.
//!
//! - `worker`: the thread and its steps
//! - `lane`: a context and its sequences
//! - [`cells`]: which rows are in the KV cache, and who shares them
//! - `slot`: one admitted request, from its prompt to its last token
//! - `answer`: one of its answers, from tokens to text
//! - `outbox`: events on their way to a reader who may be slow
//! - [`sampling`]: from logits to a token
//! - `rules`: what is forbidden, discouraged or favoured before that
//! - [`logprobs`]: what the model made of a token
//! - [`beam`]: beam search over log-probabilities
//! - [`detokenize`]: from the bytes of tokens to text
//! - [`stop`]: stop strings over token boundaries

mod answer;
pub mod cells;
pub mod detokenize;
mod lane;
pub mod logprobs;
mod lookup;
mod outbox;
mod rules;
pub mod sampling;
mod slot;
pub mod stop;
mod worker;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;

pub use crate::llama::{CacheType, FlashAttention};
pub use qformer::beam;
pub use sampling::Sampling;

use cells::RowKey;
use lane::Lanes;
use sha2::{Digest, Sha256};

use crate::constraint::Constraint;
use crate::event::Event;
use crate::language_model::LanguageModel;
use crate::llama::MAX_SEQUENCES;
use crate::stages::{Running, Stage, Stages};
use crate::turns::{Turn, Turns};
use crate::{Error, Result, llama};

/// Most biases of a request: each costs a little for every token.
pub const MAX_LOGIT_BIASES: usize = 1024;

/// Largest bias either way.
pub const MAX_LOGIT_BIAS: f32 = 100.0;

/// Most of the likeliest tokens to be told with each.
pub const MAX_TOP_LOGPROBS: usize = 20;

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
    /// Most rows that are computed at once; a larger step is split.
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
}

impl EngineOptions {
    /// KV cells of a decoder-only model's one context.
    pub(crate) fn n_cells(&self) -> usize {
        let sequences = self.cache_sequences.unwrap_or(self.slots);
        sequences.saturating_mul(self.n_ctx)
    }

    /// Fills in and checks the self.
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
        self.threads = Some(self.threads.unwrap_or_else(default_threads).max(1));
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
        }
    }
}

/// A stretch of a prompt.
#[derive(Debug, Clone)]
pub enum PromptPart {
    /// Token ids.
    Tokens(Vec<i32>),
    /// A soft prompt: rows of `n_embd` values, one after the other.
    Embeddings(Arc<[f32]>),
}

/// A prompt to answer.
#[derive(Debug)]
pub struct Sequence {
    /// Rows in their order.
    pub prompt: Vec<PromptPart>,
    /// Most tokens of the answer; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Whether the repetition penalty counts the tokens of the prompt, beside those of
    /// the answer.
    pub penalize_prompt: bool,
    /// Added to the logits of tokens (with beams: to their log-probabilities) before
    /// anything else: ids and values from -100 to 100.
    pub logit_bias: Vec<(i32, f32)>,
    /// With each token the logarithm of its probability and this many of the likeliest,
    /// at most 20. Not with beams.
    pub top_logprobs: Option<usize>,
    /// Answers that are given instead of drawn, to learn what the model makes of them:
    /// their tokens, `sampling.n` lists of them, none where answers are drawn. Each ends
    /// with its last token, whatever tokens would end one that is drawn. Not with beams.
    pub given: Vec<Vec<i32>>,
    /// The form that each answer must have. It says where one ends, so `stop_ids` do
    /// not count then. Not with beams.
    pub constraint: Option<Constraint>,
    /// Tokens that end the answer, besides the model's own end-of-generation tokens.
    pub stop_ids: Vec<i32>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Go on past the model's own end-of-generation tokens, to measure with.
    pub ignore_eos: bool,
    /// Whether the answer goes on with words of the prompt: a space before it belongs to
    /// it then, where the vocabulary's words begin with theirs.
    pub continues_text: bool,
    /// Whether rows of requests that began alike are taken from the KV cache, and
    /// this one's stay there for others.
    pub cache_prompt: bool,
    /// Where the answer goes. Closing the receiver cancels the sequence before the
    /// next step; a full channel pauses it, and it alone.
    ///
    /// One [`Event::Token`] comes for each sampled token, the one that ends the
    /// answer included, then [`Event::Done`] for each answer, or [`Event::Error`] at
    /// any time. Beams are compared to the last, so theirs come together at the end.
    pub events: mpsc::Sender<Event>,
    /// When it is too late to begin: who still waits for a slot then is told
    /// [`Error::QueueTimeout`].
    pub deadline: Option<Instant>,
    /// Where its time goes: the stages before the engine, and the engine's own.
    pub stages: Stages,
}

impl Sequence {
    /// A sequence that takes the likeliest tokens to the end of the context.
    pub fn new(prompt: Vec<PromptPart>, events: mpsc::Sender<Event>) -> Self {
        Sequence {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            penalize_prompt: true,
            logit_bias: Vec::new(),
            top_logprobs: None,
            given: Vec::new(),
            constraint: None,
            stop_ids: Vec::new(),
            stop: Vec::new(),
            ignore_eos: false,
            continues_text: false,
            cache_prompt: true,
            events,
            deadline: None,
            stages: Stages::default(),
        }
    }
}

impl Sequence {
    /// Whether it is too late to begin.
    pub(crate) fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= Instant::now())
    }
}

/// How busy an [`Engine`] is, and what it has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Requests that hold a slot.
    pub active: usize,
    /// Sequences that they hold: one each, or one for each answer or beam.
    pub sequences: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Batches computed.
    pub steps: u64,
    /// Prompt rows computed.
    pub prompt_rows: u64,
    /// Prompt rows that were in the KV cache already.
    pub reused_rows: u64,
    /// Finished sequences that are kept in the KV cache.
    pub kept_sequences: u64,
    /// Rows of logits that tokens were chosen by, those of all beams counted.
    pub sampled_tokens: u64,
    /// Tokens that were guessed ahead.
    pub guessed_tokens: u64,
    /// Those of them that were then chosen.
    pub right_guesses: u64,
}

/// Answers sequences on a thread of its own. Dropping it ends that thread; the
/// sequences in it are told [`Error::Stopped`].
pub struct Engine {
    shared: Arc<Shared>,
    abort: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    model: Arc<LanguageModel>,
    options: EngineOptions,
}

impl Engine {
    /// Makes the context and starts the thread.
    ///
    /// # Errors
    /// [`Error::Context`] when the sizes are impossible or llama.cpp cannot make
    /// the context.
    pub fn start(model: Arc<LanguageModel>, options: EngineOptions) -> Result<Engine> {
        let limits = Limits {
            n_ctx_train: model.n_ctx_train(),
            is_encoder_decoder: model.is_encoder_decoder(),
            shares_prefixes: model.shares_prefixes(),
        };
        let options = options.settled(&limits)?;
        let abort = Arc::new(AtomicBool::new(false));
        let factory = Lanes {
            model: model.clone(),
            options: options.clone(),
            abort: abort.clone(),
        };
        let lane = factory.first()?;
        let has_gpu = || llama::devices().iter().any(|device| device.is_gpu);
        let shared = Arc::new(Shared {
            turns: (factory.options.for_throughput && !has_gpu()).then(Turns::default),
            ..Shared::default()
        });
        let worker = worker::Worker::new(lane, factory, shared.clone());
        let thread = std::thread::Builder::new()
            .name("qbridge-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| Error::Context {
                reason: format!("no thread for the engine: {error}"),
            })?;
        Ok(Engine {
            shared,
            abort,
            thread: Some(thread),
            model,
            options,
        })
    }

    /// The language model.
    pub fn model(&self) -> &Arc<LanguageModel> {
        &self.model
    }

    /// The options as they came to be: `n_ctx`, `n_batch` and `threads` settled.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The longest prompt that leaves room for an answer, in rows.
    pub fn max_prompt_rows(&self) -> usize {
        if self.model.is_encoder_decoder() {
            return self.options.n_ctx;
        }
        self.options.n_ctx - 1
    }

    /// How busy the engine is.
    pub fn activity(&self) -> Activity {
        let counters = &self.shared.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.shared.lock();
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

    /// Puts a sequence into the queue. Its events begin to come when a slot is free.
    ///
    /// # Errors
    /// Before any work, and without an event:
    /// [`Error::InvalidRequest`] for an empty prompt, a token outside the
    /// vocabulary, an embedding that is not whole rows of finite numbers, sampling
    /// values out of range, or `max_tokens` of 0;
    /// [`Error::LogitBias`] for a bias out of range or for a token that there is not;
    /// [`Error::TooManyBeams`] and [`Error::TooManyChoices`] for more beams or answers
    /// than the engine has sequences;
    /// [`Error::ContextLengthExceeded`] when the prompt leaves no room for an answer;
    /// [`Error::QueueFull`] when as many sequences wait as may;
    /// [`Error::Stopped`] when the thread has ended.
    pub fn submit(&self, sequence: Sequence) -> Result<()> {
        let need = self.check(&sequence)?;
        let keys = if sequence.cache_prompt && self.options.prefix_sequences > 0 {
            row_keys(&sequence.prompt, self.model.n_embd())
        } else {
            Vec::new()
        };
        let mut state = self.shared.lock();
        if state.stopped {
            return Err(Error::Stopped);
        }
        let room = self.options.slots + self.options.queue;
        if state.active + state.waiting.len() >= room {
            state
                .waiting
                .retain(|waiting| !waiting.sequence.events.is_closed());
            if state.active + state.waiting.len() >= room {
                return Err(Error::QueueFull {
                    limit: self.options.queue,
                });
            }
        }
        state.waiting.push_back(Waiting {
            queued: sequence.stages.begin(Stage::Queue),
            sequence,
            need,
            keys,
        });
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Refuses sampling values that [`Engine::submit`] would refuse.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for values out of range, [`Error::TooManyBeams`] and
    /// [`Error::TooManyChoices`] for more than the engine has sequences.
    pub fn check_sampling(&self, sampling: &Sampling) -> Result<()> {
        sampling.validate()?;
        if sampling.num_beams > self.options.slots {
            return Err(Error::TooManyBeams {
                num_beams: sampling.num_beams,
                limit: self.options.slots,
            });
        }
        if sampling.n > self.options.slots {
            return Err(Error::TooManyChoices {
                n: sampling.n,
                limit: self.options.slots,
            });
        }
        Ok(())
    }

    /// A turn at the cores, where they are taken in turns.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        self.shared.turns.as_ref().map(Turns::take)
    }

    /// Refuses biases that [`Engine::submit`] would refuse.
    ///
    /// # Errors
    /// [`Error::LogitBias`] for too many, one out of range, or one for a token that is
    /// not in the vocabulary.
    pub fn check_logit_bias(&self, logit_bias: &[(i32, f32)]) -> Result<()> {
        let refused = |reason: String| Err(Error::LogitBias { reason });
        if logit_bias.len() > MAX_LOGIT_BIASES {
            return refused(format!(
                "{} biases, {MAX_LOGIT_BIASES} are the most",
                logit_bias.len()
            ));
        }
        for &(id, bias) in logit_bias {
            if !self.model.contains(id) {
                return refused(format!(
                    "token {id} is not in the vocabulary of {}",
                    self.model.n_vocab()
                ));
            }
            if !(-MAX_LOGIT_BIAS..=MAX_LOGIT_BIAS).contains(&bias) {
                return refused(format!(
                    "{bias} for token {id}, it must be from -100 to 100"
                ));
            }
        }
        Ok(())
    }

    /// What a sequence needs, if it can be answered at all.
    fn check(&self, sequence: &Sequence) -> Result<Need> {
        let invalid = |reason: String| Err(Error::InvalidRequest { reason });
        let n_embd = self.model.n_embd();
        let (mut n_prompt, mut n_image) = (0, 0);
        for part in &sequence.prompt {
            match part {
                PromptPart::Tokens(ids) => {
                    if let Some(id) = ids.iter().find(|&&id| !self.model.contains(id)) {
                        return invalid(format!(
                            "token {id} is not in the vocabulary of {}",
                            self.model.n_vocab()
                        ));
                    }
                    n_prompt += ids.len();
                }
                PromptPart::Embeddings(rows) => {
                    if rows.len() % n_embd != 0 {
                        return invalid(format!(
                            "a soft prompt of {} values is not whole rows of the language model's {n_embd}",
                            rows.len()
                        ));
                    }
                    if rows.iter().any(|value| !value.is_finite()) {
                        return invalid(
                            "a soft prompt holds values that are not finite".to_owned(),
                        );
                    }
                    n_prompt += rows.len() / n_embd;
                    n_image += rows.len() / n_embd;
                }
            }
        }
        if n_prompt == 0 {
            return invalid("the prompt is empty".to_owned());
        }
        if sequence.max_tokens == Some(0) {
            return invalid("max_tokens is 0, it must be at least 1".to_owned());
        }
        self.check_sampling(&sequence.sampling)?;
        self.check_logit_bias(&sequence.logit_bias)?;
        if sequence.top_logprobs > Some(MAX_TOP_LOGPROBS) {
            return invalid(format!("at most {MAX_TOP_LOGPROBS} top_logprobs"));
        }
        if sequence.sampling.num_beams > 1
            && (sequence.top_logprobs.is_some() || sequence.constraint.is_some())
        {
            return invalid("beams tell no logprobs and follow no form".to_owned());
        }
        let given = &sequence.given;
        if !given.is_empty() {
            if given.len() != sequence.sampling.n || sequence.sampling.num_beams > 1 {
                return invalid(format!(
                    "{} answers are given, and n is {} with {} beams",
                    given.len(),
                    sequence.sampling.n,
                    sequence.sampling.num_beams
                ));
            }
            if given.iter().any(Vec::is_empty) {
                return invalid("an answer that is given has no tokens".to_owned());
            }
            if let Some(id) = (given.iter().flatten()).find(|&&id| !self.model.contains(id)) {
                return invalid(format!("token {id} is not in the vocabulary"));
            }
        }
        let sequences = sequence.sampling.sequences();
        let too_long = Error::ContextLengthExceeded {
            n_prompt_tokens: n_prompt,
            n_ctx: self.options.n_ctx,
        };
        if n_prompt > self.max_prompt_rows() {
            return Err(too_long);
        }
        // The last token of an answer needs no row: it is never computed. So a
        // context of n_ctx rows gives one token more than it has rows left; the
        // limit is drawn where prompt and answer together are n_ctx tokens.
        let n_rows = if self.model.is_encoder_decoder() {
            1
        } else {
            n_prompt
        };
        let mut room = self.options.n_ctx - n_rows;
        if !self.model.is_encoder_decoder() {
            room = room.min((self.options.n_cells() - n_rows) / sequences);
        }
        if room == 0 {
            return Err(too_long);
        }
        let longest = given.iter().map(Vec::len).max();
        if longest.is_some_and(|longest| longest > room) {
            return Err(too_long);
        }
        let max_tokens = longest
            .or(sequence.max_tokens)
            .map_or(room, |max| max.min(room));
        Ok(Need {
            n_prompt,
            n_image,
            max_tokens,
            sequences,
            cells: n_rows + sequences * max_tokens,
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().shutdown = true;
        self.abort.store(true, Ordering::Relaxed);
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread had panicked");
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("model", &self.model)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A request in the queue.
struct Waiting {
    sequence: Sequence,
    need: Need,
    /// Of each row of the prompt, or none where they are not to be shared.
    keys: Vec<RowKey>,
    queued: Running,
}

impl Waiting {
    /// Whether nobody waits for it any more, or it is too late to begin.
    fn is_over(&self) -> bool {
        self.sequence.events.is_closed() || self.sequence.is_late()
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy)]
struct Need {
    /// Rows of the prompt, and the embedding rows among them.
    n_prompt: usize,
    n_image: usize,
    /// Most tokens of the answer.
    max_tokens: usize,
    /// Sequences, one for each answer or beam.
    sequences: usize,
    /// KV cells at most.
    cells: usize,
}

/// What the engine's thread and its callers share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    counters: Counters,
    /// Where the cores are shared with pictures in turns.
    turns: Option<Turns>,
}

/// Written by the engine's thread alone.
#[derive(Default)]
struct Counters {
    steps: AtomicU64,
    prompt_rows: AtomicU64,
    reused_rows: AtomicU64,
    kept_sequences: AtomicU64,
    sampled_tokens: AtomicU64,
    guessed_tokens: AtomicU64,
    right_guesses: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Requests that hold a slot, and the sequences they hold.
    active: usize,
    sequences: usize,
    /// The engine is being dropped.
    shutdown: bool,
    /// The thread has ended.
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing leaves the state half changed, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What each row of a prompt is computed from.
fn row_keys(prompt: &[PromptPart], n_embd: usize) -> Vec<RowKey> {
    let mut keys = Vec::new();
    let mut bytes = Vec::with_capacity(n_embd * size_of::<f32>());
    for part in prompt {
        match part {
            PromptPart::Tokens(ids) => keys.extend(ids.iter().copied().map(RowKey::Token)),
            PromptPart::Embeddings(rows) => {
                for row in rows.chunks_exact(n_embd) {
                    bytes.clear();
                    bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                    let mut half = [0; 16];
                    half.copy_from_slice(&Sha256::digest(&bytes)[..16]);
                    keys.push(RowKey::Embedding(half));
                }
            }
        }
    }
    keys
}

/// One thread a physical core, of those this process may use: matrix products gain
/// nothing from the second thread of a core.
fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    num_cpus::get_physical().clamp(1, usable)
}
