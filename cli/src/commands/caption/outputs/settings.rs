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

/// In the file alone: files beside pictures replace what is there, as `--overwrite` said of the run that began, which
/// `--resume` cannot be told.
const REPLACES_SIDECARS: &str = "replaces_sidecars";

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

/// Keeps the settings of an output that begins, and whether files beside pictures replace what is there.
pub(super) fn begin(out: &Path, mut settings: Settings, replaces: bool) -> Result<()> {
    let path = beside(out, ".settings");
    if replaces {
        settings.insert(REPLACES_SIDECARS.to_owned(), true.into());
    }
    std::fs::write(&path, lines::line(&settings)?).with_context(|| named(&path))
}

/// Compares settings with those that an output was begun with, and tells whether files beside pictures replace what is
/// there. Rows without settings are of an earlier version, or were moved here: nobody knows, and so they are gone on with.
pub(super) fn check(out: &Path, settings: &Settings) -> Result<bool> {
    let path = beside(out, ".settings");
    let earlier = match std::fs::read(&path) {
        Ok(earlier) => earlier,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| named(&path)),
    };
    let mut earlier: Settings = serde_json::from_slice(&earlier).with_context(|| {
        let path = path.display();
        format!("{path}: these are no settings of `qbridge caption`")
    })?;
    let replaces = earlier.remove(REPLACES_SIDECARS);
    check_settings(&earlier, settings).with_context(|| named(out))?;
    Ok(replaces == Some(true.into()))
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
        assert!(!check(&out, &cat).unwrap());
        begin(&out, cat.clone(), false).unwrap();
        assert!(!check(&out, &cat).unwrap());
        let dog = settings(json!({"prompt": "a dog?", "min_score": -1.5_f32}));
        let error = format!("{:#}", check(&out, &dog).unwrap_err());
        assert!(
            error.contains("a.jsonl: it was begun with prompt = \"a cat?\""),
            "{error}"
        );
        begin(&out, dog.clone(), true).unwrap();
        assert!(check(&out, &dog).unwrap());
        std::fs::write(dir.path().join("a.jsonl.settings"), "mine").unwrap();
        assert!(check(&out, &dog).is_err());
    }
}
