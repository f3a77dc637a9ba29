//! A language model of a Hugging Face checkpoint becomes a GGUF: tensors renamed,
//! rearranged and quantized one after the other, with the tokenizer in the metadata.
//!
//! Llama, OPT and T5 are known. Peak memory is a few chunks of a tensor, whatever the
//! model's size. `docs/convert.md` has what is special about each.

mod gguf;
mod llama;
mod opt;
mod quant;
mod t5;
mod tensor;
mod tokenizer;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use self::gguf::{Metadata, TensorEntry, Writer};
pub use self::quant::LlmQuant;
pub(crate) use self::quant::TensorType;
use self::tensor::OutputTensor;
use super::{TensorInfo, TensorSource};
use crate::{Error, Result};

/// What a language model is made of.
#[derive(Clone, Copy)]
pub struct LlmParts<'a> {
    /// The checkpoint.
    pub tensors: &'a dyn TensorSource,
    /// What stands before the language model's tensor names: `language_model.` in a
    /// BLIP-2 checkpoint, nothing in a checkpoint of its own.
    pub prefix: &'a str,
    /// Its configuration: `text_config` of a BLIP-2's `config.json`, or the whole
    /// `config.json`. `model_type` says what it is; fields left out have transformers'
    /// defaults.
    pub config: &'a Json,
    /// The file that `config` is from, for messages.
    pub config_path: &'a Path,
    /// Where its tokenizer's files are.
    pub tokenizer_dir: &'a Path,
    /// `general.name`.
    pub name: &'a str,
}

/// A conversion whose every tensor and token is accounted for, and nothing written yet.
pub struct LlmConversion<'a> {
    tensors: Vec<OutputTensor>,
    entries: Vec<TensorEntry>,
    metadata: Metadata,
    source: &'a dyn TensorSource,
    source_bytes: u64,
    n_embd: usize,
    n_vocab: usize,
}

/// What an architecture makes of a checkpoint.
struct Graph {
    architecture: &'static str,
    metadata: Metadata,
    tensors: Vec<OutputTensor>,
    n_embd: usize,
    n_vocab: usize,
}

impl<'a> LlmConversion<'a> {
    /// Reads headers, configuration and tokenizer, and checks that they fit.
    ///
    /// # Errors
    /// The architecture is not known, a tensor is missing or has another shape than the
    /// configuration says, or the tokenizer is damaged, of an unknown kind or not this
    /// model's.
    pub fn new(parts: LlmParts<'a>, quant: LlmQuant) -> Result<Self> {
        let model_type = parts.config.get("model_type").and_then(Json::as_str);
        let graph = match model_type {
            Some("llama") => llama::graph(&parts)?,
            Some("opt") => opt::graph(&parts)?,
            Some("t5") => t5::graph(&parts)?,
            other => {
                return Err(config_error(
                    &parts,
                    format!(
                        "model_type {} cannot be converted, only llama, opt and t5: give a GGUF of this model instead",
                        other.map_or("(none)".to_owned(), |name| format!("{name:?}"))
                    ),
                ));
            }
        };
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", graph.architecture);
        metadata.set("general.type", "model");
        metadata.set("general.name", parts.name);
        metadata.set("general.file_type", quant.file_type());
        // GGML_QNT_VERSION
        metadata.set("general.quantization_version", 2);
        metadata.extend(graph.metadata);
        tokenizer::read(&parts, graph.n_vocab)?.describe(&mut metadata);

        let mut source_bytes = 0;
        for tensor in &graph.tensors {
            source_bytes += tensor.check(parts.tensors)?;
        }
        let entries = graph.tensors.iter().map(|tensor| tensor.entry(quant));
        Ok(LlmConversion {
            entries: entries.collect(),
            tensors: graph.tensors,
            metadata,
            source: parts.tensors,
            source_bytes,
            n_embd: graph.n_embd,
            n_vocab: graph.n_vocab,
        })
    }

    /// Bytes that [`LlmConversion::write`] will read, and tell `progress` of.
    pub fn source_bytes(&self) -> u64 {
        self.source_bytes
    }

    /// Bytes of the tensors to be written: the GGUF's size but for its header.
    pub fn output_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Width of a token's embedding.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Rows of the token embeddings.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Writes the GGUF. It has another name until it is whole, and is removed on failure.
    /// `progress` is told the bytes read since it was last called.
    ///
    /// # Errors
    /// A file cannot be read or written, or a weight is not finite or beyond the range of
    /// the type it is to have.
    pub fn write(&self, out: &Path, progress: &dyn Fn(u64)) -> Result<()> {
        let mut writer = Writer::create(out, &self.metadata, &self.entries)?;
        for (tensor, entry) in self.tensors.iter().zip(&self.entries) {
            tensor.write(self.source, entry.kind, &mut writer, progress)?;
            writer.end_tensor(entry.bytes)?;
        }
        writer.finish()
    }
}

/// The fields of a configuration that an architecture reads.
fn read_config<T: DeserializeOwned>(parts: &LlmParts) -> Result<T> {
    let mut config = parts.config.clone();
    // transformers writes `null` for what it leaves to the default.
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    T::deserialize(config).map_err(|error| config_error(parts, error.to_string()))
}

fn config_error(parts: &LlmParts, reason: String) -> Error {
    Error::Convert {
        path: parts.config_path.to_owned(),
        reason: format!("language model: {reason}"),
    }
}

/// A size of a configuration that must not be zero.
fn positive(parts: &LlmParts, fields: &[(&str, usize)]) -> Result<()> {
    match fields.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(config_error(parts, format!("{field} is 0"))),
        None => Ok(()),
    }
}

/// Rows of the token embeddings `name`, which the configuration need not know.
fn vocabulary_rows(parts: &LlmParts, name: &str, n_embd: usize) -> Result<usize> {
    let info = tensor::stored(parts.tensors, name)?;
    match info.shape[..] {
        [rows, cols] if cols == n_embd && rows > 0 => Ok(rows),
        _ => Err(Error::Convert {
            path: info.path,
            reason: format!(
                "tensor {name} has shape {:?}, and by the configuration its rows have {n_embd} values: weights and config.json are of different models",
                info.shape
            ),
        }),
    }
}

/// Whether two tensors hold the same bytes: a head that is stored although it is tied.
fn same_content(source: &dyn TensorSource, a: &str, b: &str) -> Result<bool> {
    const STEP: usize = 16 << 20;
    let (info, other) = (tensor::stored(source, a)?, tensor::stored(source, b)?);
    if info.shape != other.shape || info.dtype != other.dtype {
        return Ok(false);
    }
    let bytes = info.shape.iter().product::<usize>() * info.dtype.bitsize() / 8;
    let (mut left, mut right) = (vec![0; STEP.min(bytes)], vec![0; STEP.min(bytes)]);
    for start in (0..bytes).step_by(STEP) {
        let n = STEP.min(bytes - start);
        source.read(a, start as u64, &mut left[..n])?;
        source.read(b, start as u64, &mut right[..n])?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
    }
    Ok(true)
}
