//! The engine: a thread owns a llama.cpp context and answers many sequences at once.
//! Where only throughput counts, several may, side by side.
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
//! - `options`: its sizes
//! - `queue`: who waits, and which worker answers whom
//! - `worker`: such a thread and its steps
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
mod options;
mod outbox;
mod queue;
mod rules;
pub mod sampling;
mod slot;
pub mod stop;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc;

pub use crate::llama::{CacheType, FlashAttention};
pub use options::EngineOptions;
pub use qformer::beam;
pub use sampling::Sampling;

use cells::RowKey;
use lane::Lanes;
pub(crate) use options::Limits;
use queue::{Need, Queue, Waiting};
use sha2::{Digest, Sha256};

use crate::constraint::Constraint;
use crate::event::Event;
use crate::language_model::LanguageModel;
use crate::stages::{Stage, Stages};
use crate::turns::{Turn, Turns};
use crate::{Error, Result};

/// Most biases of a request: each costs a little for every token.
pub const MAX_LOGIT_BIASES: usize = 1024;

/// Largest bias either way.
pub const MAX_LOGIT_BIAS: f32 = 100.0;

/// Most of the likeliest tokens to be told with each.
pub const MAX_TOP_LOGPROBS: usize = 20;

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

/// Answers sequences on threads of its own. Dropping it ends them; the sequences in it are told
/// [`Error::Stopped`].
pub struct Engine {
    queue: Arc<Queue>,
    abort: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    model: Arc<LanguageModel>,
    options: EngineOptions,
}

impl Engine {
    /// Makes the contexts and starts the threads.
    ///
    /// # Errors
    /// [`Error::Context`] when the sizes are impossible or llama.cpp cannot make
    /// a context.
    pub fn start(model: Arc<LanguageModel>, options: EngineOptions) -> Result<Engine> {
        let limits = Limits {
            n_ctx_train: model.n_ctx_train(),
            is_encoder_decoder: model.is_encoder_decoder(),
            shares_prefixes: model.shares_prefixes(),
            weights: model.weights(),
        };
        let options = options.settled(&limits)?;
        let n_workers = options.n_workers();
        let mut engine = Engine {
            queue: Arc::new(Queue::new(if options.has_turns() { n_workers } else { 0 })),
            abort: Arc::default(),
            threads: Vec::with_capacity(n_workers),
            model,
            options,
        };
        for number in 0..n_workers {
            let lanes = Lanes {
                model: engine.model.clone(),
                options: engine.options.clone(),
                threads: engine.options.share(number).1,
                abort: engine.abort.clone(),
            };
            let worker = worker::Worker::new(number, lanes, engine.queue.clone())?;
            let thread = std::thread::Builder::new()
                .name("qbridge-engine".to_owned())
                .spawn(move || worker.run())
                .map_err(|error| Error::Context {
                    reason: format!("no thread for the engine: {error}"),
                })?;
            engine.threads.push(thread);
        }
        Ok(engine)
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
        self.queue.activity()
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
        let waiting = Waiting {
            queued: sequence.stages.begin(Stage::Queue),
            sequence,
            need,
            keys,
        };
        let limit = self.options.queue;
        (self.queue).push(waiting, self.options.slots + limit, limit)
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

    /// A turn at the cores of a worker, where they are taken in turns.
    pub(crate) fn turn(&self, worker: usize) -> Option<Turn<'_>> {
        self.queue.turns.get(worker).map(Turns::take)
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
        self.queue.shut_down();
        self.abort.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine had panicked");
            }
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
