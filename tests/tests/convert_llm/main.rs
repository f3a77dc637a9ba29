//! Language models of Hugging Face checkpoints as GGUF (tests/golden/make_convert_llm.py):
//! what llama.cpp computes from the converted files against what transformers computes
//! from the checkpoints.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod bad_input;
mod models;
mod quantized;
mod tokenizers;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bridge::convert::llm::{LlmConversion, LlmParts, LlmQuant};
use bridge::convert::{TensorInfo, TensorSource};
use bridge::engine::CacheType;
use bridge::language_model::LanguageModel;
use bridge::llama::{Context, ContextOptions, FlashAttention};
use candle_core::quantized::gguf_file::Content;
use qbridge_tests::golden;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

/// Tensors made up by a test, in f32.
#[derive(Clone, Default)]
struct Made {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Reading fails once this many bytes have been read.
    fails_after: Option<usize>,
    bytes_read: Cell<usize>,
}

impl TensorSource for Made {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|(shape, _)| TensorInfo {
            dtype: Dtype::F32,
            shape: shape.clone(),
            path: PathBuf::from("made.safetensors"),
        })
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> bridge::Result<()> {
        let read = self.bytes_read.get() + buffer.len();
        self.bytes_read.set(read);
        if self.fails_after.is_some_and(|limit| read > limit) {
            return Err(bridge::Error::Io {
                path: PathBuf::from("made.safetensors"),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
        let (_, values) = &self.tensors[name];
        let first = offset as usize / 4;
        for (bytes, value) in buffer.chunks_exact_mut(4).zip(&values[first..]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "made.safetensors".to_owned()
    }
}

impl Made {
    /// Values that look like weights: of mean 0, different everywhere.
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        let name = name.into();
        let n: usize = shape.iter().product();
        let mut state = name.bytes().fold(1u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let spread = 2.0 / (shape[shape.len() - 1] as f32).sqrt();
        let values = (0..n).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 40) as f32 / 16_777_216.0 - 0.5) * 2.0 * spread
        });
        let values = values.collect();
        self.tensors.insert(name, (shape.to_vec(), values));
    }

    /// A Llama with as many rows of embeddings as a vocabulary needs.
    fn llama(width: usize, n_ff: usize, n_layers: usize, rows: usize) -> (Made, Json) {
        let mut made = Made::default();
        made.add("model.embed_tokens.weight", &[rows, width]);
        made.add("lm_head.weight", &[rows, width]);
        made.add("model.norm.weight", &[width]);
        for layer in 0..n_layers {
            let mut add = |name: &str, shape: &[usize]| {
                made.add(format!("model.layers.{layer}.{name}.weight"), shape);
            };
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(name, &[width]);
            }
            for name in ["q", "k", "v", "o"] {
                add(&format!("self_attn.{name}_proj"), &[width, width]);
            }
            add("mlp.gate_proj", &[n_ff, width]);
            add("mlp.up_proj", &[n_ff, width]);
            add("mlp.down_proj", &[width, n_ff]);
        }
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": width, "intermediate_size": n_ff,
            "num_hidden_layers": n_layers, "num_attention_heads": width / 16,
            "max_position_embeddings": 64,
        });
        (made, config)
    }
}

/// One of the golden tokenizers; `QBRIDGE_TOKENIZERS` names a directory of others of the
/// same kinds, with their `ids.json`.
fn tokenizer(name: &str) -> PathBuf {
    std::env::var_os("QBRIDGE_TOKENIZERS")
        .map_or_else(|| golden("convert_llm/tokenizers"), PathBuf::from)
        .join(name)
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn parts<'a>(
    tensors: &'a dyn TensorSource,
    config: &'a Json,
    tokenizer_dir: &'a Path,
    prefix: &'a str,
) -> LlmParts<'a> {
    LlmParts {
        tensors,
        prefix,
        config,
        config_path: Path::new("config.json"),
        tokenizer_dir,
        name: "test",
    }
}

/// A converted file, removed when dropped.
struct Converted {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Converted {
    fn new(parts: LlmParts, quant: LlmQuant) -> Converted {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("llm.gguf");
        let conversion = LlmConversion::new(parts, quant).unwrap();
        let read = Cell::new(0);
        conversion
            .write(&path, &|bytes| read.set(read.get() + bytes))
            .unwrap();
        assert_eq!(read.get(), conversion.source_bytes());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        Converted { _dir: dir, path }
    }

    fn load(&self) -> Arc<LanguageModel> {
        Arc::new(LanguageModel::load(&self.path).unwrap())
    }

    fn content(&self) -> Content {
        Content::read(&mut std::fs::File::open(&self.path).unwrap()).unwrap()
    }
}

/// One sequence, in f32 throughout.
fn context(model: &Arc<LanguageModel>) -> Context {
    let options = ContextOptions {
        n_ctx: 256,
        n_batch: 256,
        n_ubatch: 256,
        n_seq_max: 1,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::Auto,
        threads: 1,
    };
    Context::new(model.clone(), &options, Arc::default()).unwrap()
}

/// Logits of the last of `ids`.
fn logits(model: &Arc<LanguageModel>, ids: &[i32]) -> Vec<f32> {
    let mut context = context(model);
    let mut last = None;
    for (position, &id) in ids.iter().enumerate() {
        let ends = position + 1 == ids.len();
        last = Some(context.add_token(0, position, id, ends).unwrap());
    }
    context.process().unwrap();
    context.logits(last.unwrap()).unwrap().to_vec()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn ids(value: &Json) -> Vec<i32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap() as i32)
        .collect()
}
