//! How a bundle would be run, and the memory that takes, from the headers of its parts: before anything is loaded.

use qformer::checkpoint::Products;
use safetensors::Dtype;
use serde::Serialize;

use crate::Result;
use crate::bundle::Bundle;
use crate::engine::{CacheType, EngineOptions, FlashAttention, Limits};
use crate::gguf::GgufInfo;
use crate::llama::{SPARE_OUTPUTS, system_info, type_name};
use crate::model::ModelOptions;
use crate::vision_worker::MAX_BATCH;

/// llama.cpp rounds the cells of a KV cache up to a multiple of this.
const CELLS: usize = 256;

/// What a process takes beside its weights and buffers: the program, tables of the vocabulary, threads (measured).
const PROGRAM: u64 = 40 << 20;

/// How a bundle would be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The engine's options as they would come to be.
    pub engine: EngineOptions,
    /// Whether attention would run as one fused operation.
    pub flash_attention: FlashAttention,
    /// How ViT and Q-Former would multiply on a CPU: [`Products::F32`] or [`Products::Int8`].
    pub products: Products,
    /// What it would take on a CPU.
    pub memory: Memory,
}

/// Bytes of memory at the most, on a CPU. Estimated: weights and KV cache by their sizes, the rest by its largest parts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Weights of ViT, Q-Former and projection.
    pub vision: u64,
    /// What a full batch of pictures computes with.
    pub vision_buffers: u64,
    /// The language model as it is stored: pages of the file, which other processes that run it share.
    pub language_model: u64,
    /// Copy of its matrices, laid out for this machine's products.
    pub repacked: u64,
    /// Keys and values of all slots.
    pub kv_cache: u64,
    /// What llama.cpp computes with, and logits.
    pub compute: u64,
    /// Pictures seen before, once there are as many as are kept.
    pub image_cache: u64,
    /// The program itself.
    pub program: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each part by its name.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("vision weights", self.vision),
            ("vision buffers", self.vision_buffers),
            ("language model", self.language_model),
            ("repacked for products", self.repacked),
            ("KV cache", self.kv_cache),
            ("compute buffers", self.compute),
            ("pictures kept", self.image_cache),
            ("program", self.program),
        ]
    }

    /// What `bundle` takes on a CPU where it compares pictures and texts and no language model answers.
    pub fn comparing(bundle: &Bundle, products: Products, image_cache_bytes: usize) -> Memory {
        let products = settled(products, bundle);
        Memory {
            vision: bundle.checkpoint().loaded_bytes(products),
            vision_buffers: vision_buffers(bundle, products),
            language_model: 0,
            repacked: 0,
            kv_cache: 0,
            compute: 0,
            image_cache: image_cache_bytes as u64,
            program: PROGRAM,
        }
    }
}

impl Plan {
    /// How `bundle` would be run with `options` on this machine.
    ///
    /// # Errors
    /// Sizes that cannot be, as [`crate::engine::Engine::start`] refuses them, and
    /// [`crate::Error::NoLanguageModel`] for a bundle without one.
    pub fn new(bundle: &Bundle, options: &ModelOptions) -> Result<Plan> {
        let (Some(llm), Some(file)) = (bundle.llm(), &bundle.manifest().files.llm) else {
            return Err(bundle.no_language_model());
        };
        let is_encoder_decoder = llm.is_encoder_decoder();
        let engine = options
            .engine_options(bundle.manifest(), llm.n_ctx_train)
            .settled(&Limits {
                n_ctx_train: llm.n_ctx_train,
                is_encoder_decoder,
                shares_prefixes: !is_encoder_decoder,
                weights: file.bytes,
            })?;
        let flash_attention = engine
            .flash_attention
            .settled(engine.cache_type, is_encoder_decoder);
        let products = settled(options.vision, bundle);
        let types = repacked_types();
        let repacked = llm
            .matrix_bytes
            .iter()
            .filter(|(kind, _)| types.contains(&type_name(**kind)))
            .map(|(_, bytes)| bytes);
        let memory = Memory {
            vision: bundle.checkpoint().loaded_bytes(products),
            vision_buffers: vision_buffers(bundle, products),
            language_model: file.bytes,
            repacked: repacked.sum(),
            kv_cache: kv_cache(llm, &engine),
            compute: compute(llm, &engine, flash_attention),
            image_cache: options.image_cache_bytes as u64,
            program: PROGRAM,
        };
        Ok(Plan {
            engine,
            flash_attention,
            products,
            memory,
        })
    }
}

/// How ViT and Q-Former would multiply on a CPU: [`Products::F32`] or [`Products::Int8`].
pub fn settled(products: Products, bundle: &Bundle) -> Products {
    let mut tensors = bundle.checkpoint().iter();
    match products {
        Products::AsStored if tensors.any(|tensor| tensor.dtype == Dtype::I8) => Products::Int8,
        Products::AsStored => Products::F32,
        products => products,
    }
}

/// Types of matrices of which the products of this build read a copy, laid out for them: `ggml-cpu/repack.cpp`.
fn repacked_types() -> &'static [&'static str] {
    let info = system_info();
    let has = |name: &str| info.contains(&format!("{name} = 1"));
    if !has("REPACK") {
        &[]
    } else if has("AVX512") {
        &["q4_0", "q4_K", "iq4_nl", "q2_K"]
    } else if has("AVX2") {
        &["q4_0", "q4_K", "iq4_nl"]
    } else if has("DOTPROD") {
        &["q4_0", "q8_0", "q4_K", "q5_K", "q6_K", "iq4_nl"]
    } else {
        &[]
    }
}

/// Rows of an MLP's hidden layer and what lies beside them, for a full batch.
fn vision_buffers(bundle: &Bundle, products: Products) -> u64 {
    let vision = &bundle.manifest().vision;
    let rows = MAX_BATCH * vision.positions();
    // The stream, its norm, queries, keys and values, and what becomes of them.
    let values = rows * (6 * vision.hidden_size + vision.intermediate_size);
    let pixels = MAX_BATCH * 3 * vision.image_size * vision.image_size;
    let numbers = match products {
        Products::F32 | Products::AsStored => 0,
        Products::Int8 => rows * vision.intermediate_size,
    };
    ((values + pixels) * size_of::<f32>() + numbers) as u64
}

fn kv_cache(llm: &GgufInfo, engine: &EngineOptions) -> u64 {
    let cells = engine.n_cells().next_multiple_of(CELLS);
    let (keys, values) = llm.head_width;
    let row = llm.n_layers * llm.n_heads_kv * (keys + values);
    // Bytes of 32 values.
    let block = match engine.cache_type {
        CacheType::F16 => 64,
        CacheType::F32 => 128,
        CacheType::Q8_0 => 34,
    };
    ((cells * engine.n_workers()) as u64).saturating_mul(row as u64 * block / 32)
}

/// Of each worker the largest rows of a graph of `n_ubatch` rows, the mask of its attention, and logits.
fn compute(llm: &GgufInfo, engine: &EngineOptions, flash_attention: FlashAttention) -> u64 {
    let rows = engine.n_ubatch as u64;
    let cells = engine.n_cells().next_multiple_of(CELLS) as u64;
    let float = size_of::<f32>() as u64;
    let hidden = rows * (2 * llm.n_ff + 4 * llm.n_embd) as u64 * float;
    let attention = match flash_attention {
        FlashAttention::Off => rows * cells * (llm.n_heads as u64 + 1) * float,
        // In f32 as it is made, and in f16.
        FlashAttention::Auto | FlashAttention::On => rows * cells * (float + 2),
    };
    let outputs = (engine.slots + engine.prefix_sequences + SPARE_OUTPUTS) as u64;
    let worker = hidden + attention + 2 * outputs * llm.n_vocab as u64 * float;
    engine.n_workers() as u64 * worker
}
