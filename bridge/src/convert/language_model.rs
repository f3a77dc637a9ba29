//! The language model's part of a conversion: a GGUF that is ready, or weights
//! that become one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qformer::checkpoint::Checkpoint;
use qformer::config::CONFIG_FILE;
use serde_json::Value as Json;

use super::base_name;
use super::checkpoint::Source;
use super::llm::{LlmConversion, LlmParts, LlmQuant};
use super::lora::Merged;
use crate::language_model::GgufInfo;
use crate::{Error, Result, llama};

/// Where the language model comes from.
pub(super) enum LlmSource {
    /// Taken as it is, or quantized anew.
    Gguf(PathBuf, Option<LlmQuant>),
    Weights(Weights),
}

/// How often a quantization's progress is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A language model in Hugging Face's layout.
pub(super) struct Weights {
    dir: PathBuf,
    /// None where the bridge's own checkpoint holds it.
    tensors: Option<Checkpoint>,
    prefix: &'static str,
    config: Json,
    quant: LlmQuant,
}

impl LlmSource {
    /// `llm` is a GGUF, which stays as it is where no `quant` is given, or a directory
    /// that transformers saved, whose weights become [`LlmQuant::Q4KM`] then; without it, the
    /// language model is the one in the checkpoint `source`.
    pub fn open(llm: Option<&Path>, quant: Option<LlmQuant>, source: &Source) -> Result<Self> {
        let (dir, quant) = match (llm, quant) {
            (Some(gguf), quant) if !gguf.is_dir() => {
                if !source.lora()?.is_empty() {
                    return Err(Error::Convert {
                        path: gguf.to_owned(),
                        reason: "MiniGPT-v2 has a LoRA, which is merged as weights become a GGUF; give \
                                 Llama-2-7b-chat with --llm as the directory that transformers saved"
                            .to_owned(),
                    });
                }
                return Ok(Self::Gguf(gguf.to_owned(), quant));
            }
            (Some(dir), quant) => (dir, quant.unwrap_or(LlmQuant::Q4KM)),
            (None, quant) => match source.dir() {
                Some(dir) => (dir, quant.unwrap_or(LlmQuant::Q4KM)),
                None => {
                    return Err(Error::Convert {
                        path: PathBuf::from(&source.name),
                        reason: "no language model is in these files; give one with --llm, a GGUF \
                                 or a directory that transformers saved"
                            .to_owned(),
                    });
                }
            },
        };
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut config: Json = serde_json::from_str(&text).map_err(|error| Error::Convert {
            path,
            reason: error.to_string(),
        })?;
        if llm.is_none() {
            let text_config = config.get_mut("text_config").map(Json::take);
            config = text_config.unwrap_or_default();
            // transformers' default.
            if let Some(fields) = config.as_object_mut() {
                fields.entry("model_type").or_insert("opt".into());
            }
        }
        Ok(Self::Weights(Weights {
            dir: dir.to_owned(),
            tensors: llm.map(Checkpoint::open).transpose()?,
            prefix: if llm.is_none() { "language_model." } else { "" },
            config,
            quant,
        }))
    }

    pub fn name(&self, source: &Source) -> String {
        match self {
            LlmSource::Gguf(path, None) => base_name(path),
            LlmSource::Gguf(path, Some(quant)) => format!("{} {}", base_name(path), quant.name()),
            LlmSource::Weights(weights) => {
                format!("{} {}", weights.name(source), weights.quant.name())
            }
        }
    }

    /// The GGUF, or the directory of what becomes one.
    pub fn path(&self) -> &Path {
        match self {
            LlmSource::Gguf(path, _) => path,
            LlmSource::Weights(weights) => &weights.dir,
        }
    }

    /// What the GGUF's header says or will say, and the bytes that writing it
    /// tells its progress of.
    pub fn info(&self, source: &Source) -> Result<(GgufInfo, u64)> {
        match self {
            LlmSource::Gguf(path, quant) => {
                let info = GgufInfo::read(path)?;
                let refused = match quant {
                    Some(_) if info.n_parts > 1 => Some(
                        "the first of several parts, and only a single file can be quantized anew: \
                         join them with llama.cpp's `llama-gguf-split --merge`",
                    ),
                    Some(LlmQuant::F16) if info.is_encoder_decoder() => Some(
                        "a T5, whose feed-forward goes beyond the range of F16: take BF16 or Q8_0",
                    ),
                    _ => None,
                };
                if let Some(reason) = refused {
                    return Err(Error::Convert {
                        path: path.clone(),
                        reason: reason.to_owned(),
                    });
                }
                let bytes = info.file_size;
                Ok((info, bytes))
            }
            LlmSource::Weights(weights) => weights.with(source, |conversion| {
                let model_type = weights.config["model_type"].as_str().unwrap_or_default();
                let info = GgufInfo {
                    architecture: match model_type {
                        "opt" => "mpt".to_owned(),
                        other => other.to_owned(),
                    },
                    model_type: (model_type == "opt").then(|| model_type.to_owned()),
                    has_activation_scales: model_type == "opt",
                    name: Some(weights.name(source)),
                    n_embd: conversion.n_embd(),
                    n_vocab: conversion.n_vocab(),
                    file_size: conversion.output_bytes(),
                    ..GgufInfo::default()
                };
                Ok((info, conversion.source_bytes()))
            }),
        }
    }

    /// Writes the GGUF.
    pub fn write(&self, source: &Source, path: &Path, progress: &dyn Fn(u64)) -> Result<()> {
        match self {
            LlmSource::Gguf(from, None) => super::copy(from, path, progress),
            LlmSource::Gguf(from, Some(quant)) => requantize(from, *quant, path, progress),
            LlmSource::Weights(weights) => {
                weights.with(source, |conversion| conversion.write(path, progress))
            }
        }
    }
}

/// Writes the GGUF `from` in another precision. `progress` is told as many bytes as `from` has, by what was written.
fn requantize(from: &Path, quant: LlmQuant, to: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let info = GgufInfo::read(from)?;
    if !matches!(info.file_type_name(), "F32" | "F16" | "BF16") {
        tracing::warn!(
            "{}: quantized already, as {}; {quant} of the original weights would be more exact",
            from.display(),
            info.file_type_name()
        );
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut told = 0;
    let mut tell = |bytes: u64| {
        let bytes = bytes.min(info.file_size);
        progress(bytes.saturating_sub(told));
        told = told.max(bytes);
    };
    let result = std::thread::scope(|scope| {
        let work = scope.spawn(|| llama::quantize_file(from, to, quant.file_type(), threads));
        while !work.is_finished() {
            std::thread::sleep(PROGRESS_INTERVAL);
            tell(std::fs::metadata(to).map_or(0, |metadata| metadata.len()));
        }
        work.join()
    });
    let result = result.unwrap_or_else(|_| Err("quantizing it failed".to_owned()));
    tell(info.file_size);
    result.map_err(|reason| Error::Convert {
        path: from.to_owned(),
        reason: format!("cannot be quantized as {quant}: {reason}"),
    })
}

impl Weights {
    /// The bridge's name, where the language model is in the same checkpoint.
    fn name(&self, source: &Source) -> String {
        match self.tensors {
            Some(_) => base_name(&self.dir),
            None => source.name.clone(),
        }
    }

    fn with<T>(&self, source: &Source, run: impl FnOnce(&LlmConversion) -> Result<T>) -> Result<T> {
        let missing = || Error::Convert {
            path: self.dir.clone(),
            reason: "it holds no language model".to_owned(),
        };
        let tensors = match &self.tensors {
            Some(tensors) => tensors,
            None => source.hugging_face_tensors().ok_or_else(missing)?,
        };
        let changes = source.lora()?;
        let merged = Merged::new(tensors, &changes, &self.dir)?;
        let (config_path, name) = (self.dir.join(CONFIG_FILE), self.name(source));
        let conversion = LlmConversion::new(
            LlmParts {
                tensors: &merged,
                prefix: self.prefix,
                config: &self.config,
                config_path: &config_path,
                tokenizer_dir: &self.dir,
                name: &name,
            },
            self.quant,
        )?;
        run(&conversion)
    }
}
