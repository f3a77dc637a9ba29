//! One module a command.

mod answers;
pub mod ask;
pub mod bench;
pub mod bootstrap;
pub mod caption;
pub mod chat;
pub mod classify;
pub mod convert;
pub mod doctor;
pub mod encode;
pub mod eval;
pub mod filter;
pub mod index;
pub mod inspect;
pub mod matching;
pub mod pull;
pub mod search;
pub mod serve;
pub mod shell;

use anyhow::Result;
use bridge::bundle::Manifest;
use bridge::engine::Sampling;
use bridge::model::{Model, ModelOptions};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::args::{CacheType, EngineArgs, GenerationArgs};
use crate::progress;

/// Exit code after SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Opens a bundle with a spinner beside it.
fn load_model(bundle: &std::path::Path, options: &ModelOptions) -> Result<Model> {
    let spinner = progress::spinner(format!("loading {}", bundle.display()));
    let model = Model::open(bundle, options)?;
    spinner.finish_and_clear();
    Ok(model)
}

fn model_options(engine: &EngineArgs, slots: u16) -> ModelOptions {
    ModelOptions {
        slots: usize::from(slots),
        n_ctx: engine.ctx_size.map(|n| n as usize),
        cache_type: match engine.cache_type {
            CacheType::F16 => bridge::engine::CacheType::F16,
            CacheType::F32 => bridge::engine::CacheType::F32,
            CacheType::Q8_0 => bridge::engine::CacheType::Q8_0,
        },
        threads: engine.threads.map(usize::from),
        vision: engine.vision.into(),
        flash_attention: engine.flash_attention.into(),
        n_batch: engine.batch_size.map(|n| n as usize),
        n_ubatch: engine.ubatch_size.map(|n| n as usize),
        prompt_lookup: usize::from(engine.prompt_lookup),
        language_model: engine.language_model(),
        ..ModelOptions::default()
    }
}

fn sampling(args: &GenerationArgs, defaults: Sampling) -> Sampling {
    let mut sampling = Sampling {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        seed: args.seed,
        min_tokens: args.min_tokens.map_or(defaults.min_tokens, |n| n as usize),
        num_beams: args.num_beams.map_or(defaults.num_beams, usize::from),
        length_penalty: args.length_penalty.unwrap_or(defaults.length_penalty),
        repetition_penalty: args
            .repetition_penalty
            .unwrap_or(defaults.repetition_penalty),
        ..defaults
    };
    sampling.prefer_named(args.temperature.is_some(), args.num_beams.is_some());
    sampling
}

/// Digits of a bundle's hash that are told.
const HASH_DIGITS: usize = 16;

/// Tells a bundle's files from others: of the hashes of all of them.
fn bundle_hash(manifest: &Manifest) -> String {
    let mut hasher = Sha256::new();
    for (part, entry) in manifest.files.parts() {
        hasher.update(format!("{part} {}\n", entry.sha256));
    }
    let mut hash = format!("{:x}", hasher.finalize());
    hash.truncate(HASH_DIGITS);
    hash
}

/// Prints one JSON line.
fn print_json(value: &impl Serialize) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}
