//! The one module with `unsafe`: a safe layer over `llama-cpp-sys-2` for what
//! `llama-cpp-2` does not offer, which is a context whose batches mix tokens and
//! embedding rows.
//!
//! [`Context`] owns a `llama_context` and one extended batch
//! (`llama_batch_ext` of `llama.h`). A step is: [`Context::clear`], then
//! [`Context::add_token`] and [`Context::add_embedding`] for any number of
//! sequences, then [`Context::process`], then [`Context::logits`] for the rows
//! that asked for them. An encoder-decoder needs one [`Context::encode`] of the
//! sequences first.
//!
//! The context is made from `llama-cpp-2`'s [`LlamaModel`], whose private layout
//! (one non-null pointer, `#[repr(transparent)]`) this module relies on. Both
//! crates are pinned exactly, the size is checked while compiling, and
//! `tests::model_pointer_is_the_models_own` fails loudly if the layout moves.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llama_cpp_2::LlamaBackendDeviceType;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use crate::convert::llm::TensorType;
use crate::language_model::LanguageModel;
use crate::{Error, Result};

/// Sequences that llama.cpp can tell apart in one context (`LLAMA_MAX_SEQ`).
pub const MAX_SEQUENCES: usize = 256;

const _: () = {
    assert!(size_of::<LlamaModel>() == size_of::<NonNull<sys::llama_model>>());
    assert!(align_of::<LlamaModel>() == align_of::<NonNull<sys::llama_model>>());
};

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// 16-bit floats, llama.cpp's default.
    #[default]
    F16,
    /// 32-bit floats: twice the memory, closest to a reference in f32.
    F32,
    /// 8-bit blocks: about half the memory of f16. Needs flash attention (switched
    /// on by itself) and a head size divisible by 32.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl CacheType {
    fn ggml_type(self) -> sys::ggml_type {
        match self {
            CacheType::F16 => sys::GGML_TYPE_F16,
            CacheType::F32 => sys::GGML_TYPE_F32,
            CacheType::Q8_0 => sys::GGML_TYPE_Q8_0,
        }
    }

    /// Refuses what llama.cpp cannot make: in 8-bit blocks, keys and values are for fused attention alone.
    pub(crate) fn check(
        self,
        flash_attention: FlashAttention,
        is_encoder_decoder: bool,
    ) -> Result<()> {
        let reason = match self {
            CacheType::F16 | CacheType::F32 => return Ok(()),
            CacheType::Q8_0 if is_encoder_decoder => {
                "an encoder-decoder has a position bias in its attention, which llama.cpp's fused attention does not \
                 take, and a q8_0 cache needs that: use an f16 or f32 cache"
            }
            CacheType::Q8_0 if flash_attention == FlashAttention::Off => {
                "a q8_0 cache needs fused attention, which is switched off: let it be chosen (auto), or use an f16 or \
                 f32 cache"
            }
            CacheType::Q8_0 => return Ok(()),
        };
        Err(Error::Context {
            reason: reason.to_owned(),
        })
    }
}

/// Whether attention runs as one fused operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where the backend supports it for this model, but not with a cache in f32,
    /// which is for exactness: on a CPU the fused operation rounds more (measured:
    /// logits 1e-2 off instead of 1e-5).
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always; creating the context fails where it is not supported.
    On,
}

impl FlashAttention {
    /// What becomes of it with a KV cache of this type, for an encoder-decoder or not.
    pub fn settled(self, cache_type: CacheType, is_encoder_decoder: bool) -> FlashAttention {
        match self {
            // Fused, the keys and values of T5's cross attention would be cast to f16, and
            // they are made for f32 (Flan-T5 overflows in f16).
            _ if is_encoder_decoder => FlashAttention::Off,
            FlashAttention::Auto if cache_type == CacheType::F32 => FlashAttention::Off,
            other => other,
        }
    }
}

/// Rows of output that a batch has room for beside one of each sequence: for tokens that are
/// expected behind the next one.
pub(crate) const SPARE_OUTPUTS: usize = 32;

/// Sizes and types of a [`Context`], as in `llama_context_params`.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    /// KV cells of the whole context, shared by all sequences.
    pub n_ctx: usize,
    /// Most rows in one [`Context::process`].
    pub n_batch: usize,
    /// Most rows in one computed graph; a larger batch is split.
    pub n_ubatch: usize,
    /// Sequences, numbered from 0.
    pub n_seq_max: usize,
    /// Element type of K and V.
    pub cache_type: CacheType,
    /// See [`FlashAttention`].
    pub flash_attention: FlashAttention,
    /// Threads of the CPU backend.
    pub threads: usize,
}

/// Why [`Context::process`] did not compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// No free KV cells for this batch; nothing was computed (return value 1).
    #[error("no room in the KV cache for this batch")]
    NoRoom,
    /// The abort flag was set while computing (return value 2).
    #[error("computation was aborted")]
    Aborted,
    /// The batch itself is refused; nothing was computed (return value -1).
    #[error("llama.cpp refused the batch")]
    Refused,
    /// Computation failed; part of the batch may be in the KV cache.
    #[error("llama.cpp failed with {0}")]
    Failed(i32),
}

/// Position of a row in the current batch, as `add_token` and `add_embedding`
/// return it and [`Context::logits`] takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row(i32);

/// A llama.cpp context with its KV cache and one extended batch.
pub struct Context {
    raw: NonNull<sys::llama_context>,
    batch: NonNull<sys::llama_batch_ext>,
    memory: NonNull<sys::llama_memory_i>,
    n_embd: usize,
    n_vocab: usize,
    n_batch: usize,
    n_ubatch: usize,
    n_seq_max: usize,
    n_outputs_max: usize,
    /// The same for a decoder.
    n_decoded_max: usize,
    n_rows: usize,
    n_outputs: usize,
    has_encoded: bool,
    /// Read by llama.cpp through a raw pointer until `raw` is freed.
    _abort: Arc<AtomicBool>,
    /// Outlives `raw`, which points into it.
    model: Arc<LanguageModel>,
}

// SAFETY: a llama_context has no tie to the thread that made it; it must only not
// be used by two threads at once, and every use here takes `&mut self` (or, in
// `last_position`, reads what only `&mut self` methods change). `Context` is not Sync.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context for `model`.
    ///
    /// Setting `abort` makes a running [`Context::process`] on the CPU return
    /// [`ProcessError::Aborted`] soon.
    ///
    /// # Errors
    /// [`Error::Context`] with llama.cpp's own words, such as a head size that
    /// the cache type does not divide, or too little memory.
    pub fn new(
        model: Arc<LanguageModel>,
        options: &ContextOptions,
        abort: Arc<AtomicBool>,
    ) -> Result<Context> {
        if options.n_seq_max == 0 || options.n_seq_max > MAX_SEQUENCES {
            return Err(Error::Context {
                reason: format!(
                    "{} sequences asked for, 1 to {MAX_SEQUENCES} are possible",
                    options.n_seq_max
                ),
            });
        }
        let threads = i32::try_from(options.threads.max(1)).unwrap_or(i32::MAX);
        // SAFETY: takes and returns plain data.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = to_u32("n_ctx", options.n_ctx)?;
        params.n_batch = to_u32("n_batch", options.n_batch)?;
        params.n_ubatch = to_u32("n_ubatch", options.n_ubatch.min(options.n_batch))?;
        params.n_seq_max = to_u32("n_seq_max", options.n_seq_max)?;
        // The default reserves n_batch rows of logits, 100 MB for a vocabulary of 49152.
        let n_decoded_max = options.n_seq_max.saturating_add(SPARE_OUTPUTS);
        params.n_outputs_max = to_u32("n_seq_max", n_decoded_max)?;
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.type_k = options.cache_type.ggml_type();
        params.type_v = options.cache_type.ggml_type();
        let encodes = model.is_encoder_decoder();
        options.cache_type.check(options.flash_attention, encodes)?;
        let flash_attention = options.flash_attention.settled(options.cache_type, encodes);
        params.flash_attn_type = match flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        // With one pool of cells, prompts and single tokens of different sequences
        // go through one graph instead of being split into batches of equal length.
        params.kv_unified = true;
        params.no_perf = true;
        params.abort_callback = Some(should_abort);
        params.abort_callback_data = Arc::as_ptr(&abort).cast_mut().cast::<c_void>();

        let _ = take_error();
        let raw = {
            // Creating a context may write to the model (n_ctx_train under YaRN).
            static CREATION: Mutex<()> = Mutex::new(());
            let _guard = CREATION.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the pointer is that of a live model, kept alive by `model`;
            // `params` is plain data whose only pointer, the abort flag, is kept
            // alive by `_abort`.
            unsafe { sys::llama_init_from_model(model_ptr(model.raw()).as_ptr(), params) }
        };
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::Context {
                reason: take_error().unwrap_or_else(|| "llama.cpp could not create it".to_owned()),
            });
        };
        // SAFETY: `raw` is a live context.
        let memory = unsafe { sys::llama_get_memory(raw.as_ptr()) };
        // SAFETY: as above; the batch is freed in `drop`, before the context.
        let batch = unsafe { sys::llama_batch_ext_init(raw.as_ptr()) };
        let (Some(memory), Some(batch)) = (NonNull::new(memory), NonNull::new(batch)) else {
            // SAFETY: `raw` is live and not used after this; `batch` is null or live.
            unsafe {
                if !batch.is_null() {
                    sys::llama_batch_ext_free(batch);
                }
                sys::llama_free(raw.as_ptr());
            }
            return Err(Error::Context {
                reason: "this model keeps no KV cache, so it cannot generate".to_owned(),
            });
        };
        Ok(Context {
            raw,
            batch,
            memory,
            n_embd: model.n_embd(),
            n_vocab: model.n_vocab(),
            n_batch: options.n_batch,
            n_ubatch: options.n_ubatch.min(options.n_batch),
            n_seq_max: options.n_seq_max,
            // llama.cpp outputs every row of an encoder, whatever is asked for.
            n_outputs_max: if encodes {
                options.n_batch
            } else {
                n_decoded_max
            },
            n_decoded_max,
            n_rows: 0,
            n_outputs: 0,
            has_encoded: false,
            _abort: abort,
            model,
        })
    }

    /// Values of an embedding row.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Most rows in one batch.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// Rows in the current batch.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Rows of the batch whose output may still be asked for, of a decoder.
    pub fn outputs_left(&self) -> usize {
        self.n_decoded_max.saturating_sub(self.n_outputs)
    }

    /// Empties the batch.
    pub fn clear(&mut self) {
        // SAFETY: `batch` is live.
        unsafe { sys::llama_batch_ext_clear(self.batch.as_ptr()) };
        self.n_rows = 0;
        self.n_outputs = 0;
    }

    /// Adds token `id` at `position` of `sequence`; `logits` asks for its output.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for an id outside the vocabulary,
    /// [`Error::Decode`] when the batch is full or `sequence` out of range.
    pub fn add_token(
        &mut self,
        sequence: usize,
        position: usize,
        id: i32,
        logits: bool,
    ) -> Result<Row> {
        if usize::try_from(id).is_ok_and(|id| id < self.n_vocab) {
            let sequence = self.check(sequence, position, logits)?;
            // SAFETY: `batch` is live and holds fewer than n_batch rows; the
            // sequence and the id are in range (checked above).
            let row = unsafe { sys::llama_batch_ext_add_token(self.batch.as_ptr(), sequence, id) };
            return self.finish_row(row, position, logits);
        }
        Err(Error::InvalidRequest {
            reason: format!("token {id} is not in the vocabulary of {}", self.n_vocab),
        })
    }

    /// Adds one embedding row (`n_embd` floats) at `position` of `sequence`.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when `row` is not `n_embd` long,
    /// [`Error::Decode`] when the batch is full or `sequence` out of range.
    pub fn add_embedding(
        &mut self,
        sequence: usize,
        position: usize,
        row: &[f32],
        logits: bool,
    ) -> Result<Row> {
        if row.len() != self.n_embd {
            return Err(Error::InvalidRequest {
                reason: format!(
                    "an embedding row has {} values, the language model takes {}",
                    row.len(),
                    self.n_embd
                ),
            });
        }
        let sequence = self.check(sequence, position, logits)?;
        let embd = sys::llama_embd {
            data: row.as_ptr(),
            n_rows: 1,
            n_embd: row.len(),
        };
        // SAFETY: `embd` describes `row` exactly, and llama.cpp copies it before it
        // returns; its length is the model's input width, so it is accepted.
        let row = unsafe { sys::llama_batch_ext_add_embd(self.batch.as_ptr(), sequence, embd) };
        self.finish_row(row, position, logits)
    }

    fn check(&self, sequence: usize, position: usize, logits: bool) -> Result<i32> {
        let problem = if self.n_rows >= self.n_batch {
            format!("the batch is full ({} rows)", self.n_batch)
        } else if sequence >= self.n_seq_max {
            format!("sequence {sequence} of {}", self.n_seq_max)
        } else if logits && self.n_outputs >= self.n_outputs_max {
            format!("more than {} rows of output in a batch", self.n_outputs_max)
        } else if i32::try_from(position).is_err() {
            format!("position {position}")
        } else {
            // In range: n_seq_max is at most 256.
            return Ok(sequence as i32);
        };
        Err(Error::Decode { reason: problem })
    }

    fn finish_row(&mut self, row: i32, position: usize, logits: bool) -> Result<Row> {
        if row < 0 {
            return Err(Error::Decode {
                reason: format!("llama_batch_ext_add returned {row}"),
            });
        }
        let p = position as i32;
        // M-RoPE models read up to four positions of an embedding row, others one.
        let positions: [sys::llama_pos; 4] = [p, p, p, 0];
        // SAFETY: `row` is in the batch, and `positions` holds the four values that
        // llama.cpp reads at most (GGML_MROPE_SECTIONS).
        let set = unsafe {
            sys::llama_batch_ext_set_pos(self.batch.as_ptr(), row, positions.as_ptr())
                && sys::llama_batch_ext_set_output_logits(self.batch.as_ptr(), row, logits)
        };
        if !set {
            return Err(Error::Decode {
                reason: format!("row {row} is not in the batch"),
            });
        }
        self.n_rows += 1;
        self.n_outputs += usize::from(logits);
        Ok(Row(row))
    }

    /// Lets `sequences` read an encoder's row too, beside the one it was added to.
    ///
    /// # Errors
    /// [`Error::Decode`] when a sequence is out of range.
    pub fn share(&mut self, row: Row, sequences: &[usize]) -> Result<()> {
        for &sequence in sequences {
            // SAFETY: `batch` is live; llama.cpp checks both numbers.
            let added = i32::try_from(sequence).is_ok_and(|sequence| unsafe {
                sys::llama_batch_ext_add_seq(self.batch.as_ptr(), row.0, sequence)
            });
            if !added {
                return Err(Error::Decode {
                    reason: format!("sequence {sequence} of {}", self.n_seq_max),
                });
            }
        }
        Ok(())
    }

    /// Runs the encoder of an encoder-decoder over the batch, whose rows must all
    /// have asked for their output. The result stays in the context, in place of
    /// the one before, and is what the decoder's rows of the same sequences see in
    /// [`Context::process`]. The KV cache is not touched.
    ///
    /// # Errors
    /// See [`ProcessError`]; [`ProcessError::Refused`] also for a model without an
    /// encoder and for more rows than `n_ubatch`.
    pub fn encode(&mut self) -> Result<(), ProcessError> {
        // llama.cpp asserts that an encoder's input is one ubatch.
        if !self.model.is_encoder_decoder() || self.n_rows > self.n_ubatch {
            return Err(ProcessError::Refused);
        }
        self.run(sys::LLAMA_PROCESS_TYPE_ENCODE)
    }

    /// Computes the batch: its rows enter the KV cache, and the logits asked for
    /// become readable until the next call.
    ///
    /// # Errors
    /// See [`ProcessError`]; [`ProcessError::Refused`] also for an encoder-decoder
    /// that has encoded nothing yet.
    pub fn process(&mut self) -> Result<(), ProcessError> {
        // llama.cpp asserts that there is an encoder's result to attend to.
        if self.model.is_encoder_decoder() && !self.has_encoded {
            return Err(ProcessError::Refused);
        }
        self.run(sys::LLAMA_PROCESS_TYPE_DECODE)
    }

    fn run(&mut self, kind: sys::llama_process_type) -> Result<(), ProcessError> {
        if self.n_rows == 0 {
            return Err(ProcessError::Refused);
        }
        // SAFETY: context and batch are live and belong together; the batch holds
        // 1 to n_batch rows (an encoder's at most n_ubatch) and at most n_outputs_max
        // outputs (checked in `check` and by the callers), which llama.cpp asserts
        // instead of reporting.
        let status = unsafe { sys::llama_process(self.raw.as_ptr(), kind, self.batch.as_ptr()) };
        self.has_encoded |= kind == sys::LLAMA_PROCESS_TYPE_ENCODE && status == 0;
        match status {
            0 => Ok(()),
            1 => Err(ProcessError::NoRoom),
            2 => Err(ProcessError::Aborted),
            -1 => Err(ProcessError::Refused),
            code => Err(ProcessError::Failed(code)),
        }
    }

    /// Logits of a row of the last processed batch, `[n_vocab]`, without a copy.
    ///
    /// # Errors
    /// [`Error::Decode`] when that row did not ask for them.
    pub fn logits(&mut self, row: Row) -> Result<&[f32]> {
        // SAFETY: the context is live; a row without logits gives null.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row.0) };
        if logits.is_null() {
            return Err(Error::Decode {
                reason: format!("row {} has no logits", row.0),
            });
        }
        // SAFETY: a non-null result is a row of n_vocab floats that stays in place
        // until the next `process`, which the borrow of `self` keeps away.
        Ok(unsafe { std::slice::from_raw_parts(logits, self.n_vocab) })
    }

    /// Takes all of a sequence out of the KV cache.
    pub fn remove(&mut self, sequence: usize) {
        self.truncate(sequence, 0);
    }

    /// Leaves a sequence only its positions below `n`. More than 0 need a model for
    /// which [`keeps_every_row`] holds.
    pub fn truncate(&mut self, sequence: usize, n: usize) {
        let Ok(n) = i32::try_from(n) else { return };
        if sequence >= self.n_seq_max {
            return;
        }
        // SAFETY: `memory` belongs to the live context; the sequence is in range.
        // Removing a whole sequence never fails, nor its end in a plain KV cache.
        unsafe { sys::llama_memory_seq_rm(self.memory.as_ptr(), sequence as i32, n, -1) };
    }

    /// Gives sequence `to`, which must be empty, all that `from` holds in the KV
    /// cache. The cells are shared, nothing is copied.
    pub fn fork(&mut self, from: usize, to: usize) {
        self.fork_rows(from, to, usize::MAX);
    }

    /// Like [`Context::fork`], of the positions below `n` only. That needs a model
    /// for which [`keeps_every_row`] holds.
    pub fn fork_rows(&mut self, from: usize, to: usize, n: usize) {
        if from.max(to) >= self.n_seq_max {
            return;
        }
        // In range: n_seq_max is at most 256.
        let (from, to) = (from as i32, to as i32);
        let n = i32::try_from(n).unwrap_or(-1);
        // SAFETY: `memory` belongs to the live context; both sequences are in range,
        // and with a unified cache in the same stream.
        unsafe { sys::llama_memory_seq_cp(self.memory.as_ptr(), from, to, 0, n) };
    }

    /// Last position of a sequence in the KV cache.
    pub fn last_position(&self, sequence: usize) -> Option<usize> {
        if sequence >= self.n_seq_max {
            return None;
        }
        // SAFETY: `memory` belongs to the live context; the sequence is in range.
        let last = unsafe { sys::llama_memory_seq_pos_max(self.memory.as_ptr(), sequence as i32) };
        usize::try_from(last).ok()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both are live and never used again; the batch goes first because
        // it points into the context, the context before the model and the abort
        // flag, which are fields and dropped after this.
        unsafe {
            sys::llama_batch_ext_free(self.batch.as_ptr());
            sys::llama_free(self.raw.as_ptr());
        }
    }
}

unsafe extern "C" fn should_abort(flag: *mut c_void) -> bool {
    // SAFETY: `flag` is the AtomicBool behind `Context::_abort`, which lives as
    // long as the context that calls this.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

fn to_u32(what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Context {
        reason: format!("{what} of {value} is too large"),
    })
}

fn model_ptr(model: &LlamaModel) -> NonNull<sys::llama_model> {
    // SAFETY: LlamaModel is #[repr(transparent)] over Ptr<llama_model>, itself
    // #[repr(transparent)] over NonNull, in the pinned llama-cpp-2 =0.1.160; size
    // and alignment are asserted above.
    unsafe {
        std::ptr::from_ref(model)
            .cast::<NonNull<sys::llama_model>>()
            .read()
    }
}

/// Width of an embedding row that the model takes as input.
pub(crate) fn n_embd_input(model: &LlamaModel) -> usize {
    // SAFETY: the pointer is that of a live model.
    let n = unsafe { sys::llama_model_n_embd_inp(model_ptr(model).as_ptr()) };
    usize::try_from(n).unwrap_or(0)
}

/// Whether the model has an encoder, and whether it has a decoder (T5 has both).
pub(crate) fn encoder_and_decoder(model: &LlamaModel) -> (bool, bool) {
    let model = model_ptr(model).as_ptr();
    // SAFETY: the pointer is that of a live model.
    unsafe {
        (
            sys::llama_model_has_encoder(model),
            sys::llama_model_has_decoder(model),
        )
    }
}

/// Whether the KV cache keeps each row of a sequence until it is taken out, so that
/// any beginning of it can be shared. A sliding window and a recurrent state forget.
pub(crate) fn keeps_every_row(model: &LlamaModel) -> bool {
    let model = model_ptr(model).as_ptr();
    // SAFETY: the pointer is that of a live model.
    unsafe {
        sys::llama_model_n_swa(model) == 0
            && !sys::llama_model_is_recurrent(model)
            && !sys::llama_model_is_hybrid(model)
    }
}

/// The token that a decoder beside an encoder starts from, where the file names one.
pub(crate) fn decoder_start(model: &LlamaModel) -> Option<i32> {
    // SAFETY: the pointer is that of a live model.
    let id = unsafe { sys::llama_model_decoder_start_token(model_ptr(model).as_ptr()) };
    (id >= 0).then_some(id)
}

/// Whether the model brings a tokenizer. llama.cpp aborts the process when text is
/// tokenized without one.
pub(crate) fn has_tokenizer(model: &LlamaModel) -> bool {
    // SAFETY: the pointer is that of a live model, which owns the vocabulary.
    unsafe {
        let vocab = sys::llama_model_get_vocab(model_ptr(model).as_ptr());
        !vocab.is_null() && sys::llama_vocab_type(vocab) != sys::LLAMA_VOCAB_TYPE_NONE
    }
}

/// Elements and bytes of one block of a ggml tensor type, or `None` for a type
/// that this llama.cpp does not know.
pub(crate) fn type_layout(ggml_type: u32) -> Option<(u64, u64)> {
    if ggml_type >= sys::GGML_TYPE_COUNT {
        return None;
    }
    // SAFETY: both only index a table of GGML_TYPE_COUNT entries.
    let (block, bytes) = unsafe {
        (
            sys::ggml_blck_size(ggml_type),
            sys::ggml_type_size(ggml_type),
        )
    };
    // Removed types have blocks of 0 bytes.
    let block = u64::try_from(block).ok().filter(|&n| n > 0)?;
    (bytes > 0).then_some((block, bytes as u64))
}

/// Name of a ggml tensor type, such as `q4_K`; empty for a type that this llama.cpp does not know.
pub(crate) fn type_name(ggml_type: u32) -> &'static str {
    if ggml_type >= sys::GGML_TYPE_COUNT {
        return "";
    }
    // SAFETY: only indexes a table of GGML_TYPE_COUNT entries, whose names are static.
    unsafe {
        let name = sys::ggml_type_name(ggml_type);
        match name.is_null() {
            true => "",
            false => CStr::from_ptr(name).to_str().unwrap_or(""),
        }
    }
}

/// A device that llama.cpp can compute on.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ComputeDevice {
    /// Such as `CPU` or `CUDA0`.
    pub name: String,
    /// What it is called, such as `NVIDIA H200`.
    pub description: String,
    /// Whether it is a GPU of its own or within the processor.
    pub is_gpu: bool,
    /// Bytes of memory, all and free; of a CPU the machine's.
    pub memory_total: u64,
    /// See `memory_total`.
    pub memory_free: u64,
}

/// The devices that this build of llama.cpp finds on this machine.
pub fn devices() -> Vec<ComputeDevice> {
    let _ = backend();
    llama_cpp_2::list_llama_ggml_backend_devices()
        .into_iter()
        .map(|device| ComputeDevice {
            name: device.name,
            description: device.description,
            is_gpu: matches!(
                device.device_type,
                LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu
            ),
            memory_total: device.memory_total as u64,
            memory_free: device.memory_free as u64,
        })
        .collect()
}

/// What this build of llama.cpp was made for and finds, in its own words, such as
/// `CPU : SSE3 = 1 | AVX2 = 1 | OPENMP = 1 |`.
pub fn system_info() -> String {
    let _ = backend();
    static CALL: Mutex<()> = Mutex::new(());
    let _guard = CALL.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the backend is up. What comes back is a C string that stays in place until the
    // next call, which the lock keeps away.
    let info = unsafe { sys::llama_print_system_info() };
    if info.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(info) }
        .to_string_lossy()
        .trim()
        .to_owned()
}

/// Casts whole rows of `cols` elements to `kind`, into the bytes of a GGUF tensor.
///
/// # Panics
/// `cols` is no multiple of the type's block, or `out` has not the size of those rows.
pub(crate) fn quantize_rows(kind: TensorType, values: &[f32], cols: usize, out: &mut [u8]) {
    let rows = values.len() / cols;
    let (block, bytes) = type_layout(kind as u32).unwrap_or((0, 0));
    assert!(
        block > 0 && (cols as u64).is_multiple_of(block),
        "whole blocks"
    );
    assert_eq!(values.len(), rows * cols, "whole rows");
    assert_eq!(out.len() as u64, values.len() as u64 / block * bytes);
    // SAFETY: reads `rows * cols` floats and writes as many blocks as `out` has room for
    // (both asserted above); these types need no importance matrix. The first call sets
    // up tables under a lock of ggml's own.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            kind as u32,
            values.as_ptr(),
            out.as_mut_ptr().cast::<c_void>(),
            0,
            rows as i64,
            cols as i64,
            std::ptr::null(),
        )
    };
    assert_eq!(written as u64, out.len() as u64);
}

/// Writes the GGUF `from` anew, quantized as llama.cpp's `llama_ftype` `file_type` says, to `to`.
/// Weights that are quantized already are read back first.
///
/// # Errors
/// What llama.cpp said, where it did.
pub(crate) fn quantize_file(
    from: &Path,
    to: &Path,
    file_type: u32,
    threads: usize,
) -> Result<(), String> {
    let c_path = |path: &Path| {
        CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| "its path has a zero byte".to_owned())
    };
    let (from, to) = (c_path(from)?, c_path(to)?);
    backend();
    take_error();
    // SAFETY: returns a plain value; its pointers, to nothing, stay as they are.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = file_type as _;
    params.nthread = i32::try_from(threads).unwrap_or(i32::MAX);
    params.allow_requantize = true;
    // SAFETY: the two strings and the parameters live through the call, which catches what it
    // throws and says so by its status.
    match unsafe { sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params) } {
        0 => Ok(()),
        _ => Err(take_error().unwrap_or_else(|| "llama.cpp cannot quantize it".to_owned())),
    }
}

/// The process-wide backend, initialized on first use, with llama.cpp's log sent
/// to `tracing` under the target `llama.cpp`.
pub(crate) fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        // SAFETY: `log` is a plain function that needs no user data.
        unsafe {
            sys::llama_log_set(Some(log), std::ptr::null_mut());
            sys::ggml_log_set(Some(log), std::ptr::null_mut());
        }
        // Another user of llama.cpp in this process may have been first; then the
        // backend is up already, which is all this value says.
        LlamaBackend::init().unwrap_or(LlamaBackend {})
    })
}

thread_local! {
    static FIRST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The first error that llama.cpp logged on this thread since the last call.
pub(crate) fn take_error() -> Option<String> {
    FIRST_ERROR.with(RefCell::take)
}

/// Whether llama.cpp says that it stopped as it was asked to ([`ProcessError::Aborted`]), which it takes for an error.
fn is_abort(text: &str) -> bool {
    [
        "graph_compute_async failed with error 1",
        "compute status: 1",
    ]
    .iter()
    .any(|end| text.ends_with(end))
}

unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // llama.cpp is chatty: its INFO is a page for each model, its WARN mostly advice.
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            // SAFETY: llama.cpp passes a C string that lives through the call.
            let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
            let text = text.trim();
            if is_abort(text) {
                tracing::debug!(target: "llama.cpp", "{text}");
                return;
            }
            tracing::warn!(target: "llama.cpp", "{text}");
            // "function: message"; the function's name says nothing to a user.
            let message = text.split_once(": ").map_or(text, |(_, message)| message);
            // The first says why; those that follow, that it failed.
            let _ = FIRST_ERROR.try_with(|first| {
                first.borrow_mut().get_or_insert_with(|| message.to_owned());
            });
        }
        sys::GGML_LOG_LEVEL_WARN if tracing::enabled!(target: "llama.cpp", tracing::Level::INFO) => {
            // SAFETY: as above.
            let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
            // It takes the cells of all sequences for those of one, which the engine keeps within what was trained.
            if !text.contains("possible training context overflow") {
                tracing::info!(target: "llama.cpp", "{}", text.trim());
            }
        }
        sys::GGML_LOG_LEVEL_INFO if tracing::enabled!(target: "llama.cpp", tracing::Level::DEBUG) =>
        {
            // SAFETY: as above.
            let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
            tracing::debug!(target: "llama.cpp", "{}", text.trim());
        }
        sys::GGML_LOG_LEVEL_DEBUG if tracing::enabled!(target: "llama.cpp", tracing::Level::TRACE) =>
        {
            // SAFETY: as above.
            let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
            tracing::trace!(target: "llama.cpp", "{}", text.trim());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
