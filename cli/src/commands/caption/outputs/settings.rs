//! What captions were asked for with, in a file of its own beside the output (`FILE.settings`): rows are read by
//! others, and have no place for it.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use bridge::bundle::Manifest;
use serde::Serialize;

use super::super::super::bundle_hash;
use super::{beside, named};
use crate::args::CaptionArgs;
use crate::batch::{Settings, check_settings, lines, read_back};

/// What is asked, not how it is computed: another machine may have less memory. What is not given is the bundle's.
#[derive(Debug, Serialize)]
struct Asked<'a> {
    bundle: &'a str,
    /// Tells the bundle's files from others.
    bundle_hash: String,
    prompt: Option<&'a str>,
    prefix: Option<&'a str>,
    captions: u16,
    min_score: Option<f32>,
    max_tokens: Option<u32>,
    min_tokens: Option<u32>,
    num_beams: Option<u16>,
    length_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    temperature: Option<f32>,
    seed: Option<u64>,
}

/// As the command line says.
pub(super) fn of(args: &CaptionArgs, manifest: &Manifest) -> Result<Settings> {
    let generation = &args.generation;
    read_back(&Asked {
        bundle: &manifest.name,
        bundle_hash: bundle_hash(manifest),
        prompt: args.prompt.as_deref(),
        prefix: args.prefix.as_deref().map(str::trim_end),
        captions: args.captions,
        min_score: args.min_score,
        max_tokens: generation.max_tokens,
        min_tokens: generation.min_tokens,
        num_beams: generation.num_beams,
        length_penalty: generation.length_penalty,
        repetition_penalty: generation.repetition_penalty,
        temperature: generation.temperature,
        seed: generation.seed,
    })
}

/// Keeps the settings of an output that begins, or compares them with those that it was begun with. Rows without them are
/// of an earlier version, or were moved here: nobody knows, and so they are gone on with.
pub(super) fn keep(out: &Path, is_new: bool, settings: &Settings) -> Result<()> {
    let path = beside(out, ".settings");
    if is_new {
        let line = lines::line(settings)?;
        return std::fs::write(&path, line).with_context(|| named(&path));
    }
    let earlier = match std::fs::read(&path) {
        Ok(earlier) => earlier,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| named(&path)),
    };
    let earlier = serde_json::from_slice(&earlier).with_context(|| {
        let path = path.display();
        format!("{path}: these are no settings of `qbridge caption`")
    })?;
    check_settings(&earlier, settings).with_context(|| named(out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn an_output_is_gone_on_with_as_it_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.jsonl");
        let settings = |value: serde_json::Value| read_back(&value).unwrap();
        let cat = settings(json!({"prompt": "a cat?", "min_score": -1.5_f32}));
        // Rows that came without any.
        keep(&out, false, &cat).unwrap();
        keep(&out, true, &cat).unwrap();
        keep(&out, false, &cat).unwrap();
        let dog = settings(json!({"prompt": "a dog?", "min_score": -1.5_f32}));
        let error = format!("{:#}", keep(&out, false, &dog).unwrap_err());
        assert!(
            error.contains("a.jsonl: it was begun with prompt = \"a cat?\""),
            "{error}"
        );
        keep(&out, true, &dog).unwrap();
        keep(&out, false, &dog).unwrap();
        std::fs::write(dir.path().join("a.jsonl.settings"), "mine").unwrap();
        assert!(keep(&out, false, &dog).is_err());
    }
}
