//! `qbridge pull`: a bundle from a model of the Hugging Face hub. What is
//! fetched is a checkpoint directory, which is then converted as any other.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bridge::convert::{
    CHECKPOINT_FILES, Conversion, Origin, check_no_llm, is_vision_side, without_language_model,
};
use hub::{Cache, Client, ClientOptions, ModelName, Tensors, Token};

use super::convert::{conversion_options, convert};
use crate::args::{ConversionArgs, HubArgs, PullArgs};
use crate::{directories, progress};

/// Runs the command; prints the bundle's directory.
pub fn run(args: &PullArgs) -> Result<ExitCode> {
    let out = args.out.as_deref().unwrap_or(Path::new(args.model.name()));
    pull(&args.model, out, &args.hub, &args.conversion)
}

/// Fetches `model` and converts it to the bundle `out`.
pub fn pull(
    model: &ModelName,
    out: &Path,
    hub: &HubArgs,
    conversion: &ConversionArgs,
) -> Result<ExitCode> {
    // What the conversion would refuse after hours of fetching.
    let mut options = conversion_options(conversion)?;
    if out.exists() {
        let path = out.to_owned();
        return Err(bridge::Error::Exists { path }.into());
    }
    if let Some(llm) = &conversion.llm {
        std::fs::metadata(llm).with_context(|| llm.display().to_string())?;
    }
    let cache = Cache::new(match &hub.cache {
        Some(dir) => dir.clone(),
        None => default_cache()?,
    });
    let client = match hub.offline {
        true => None,
        false => Some(Client::new(ClientOptions {
            token: Token::from_environment()?,
            ..ClientOptions::new(hub.endpoint.clone())
        })),
    };
    let snapshot = cache.snapshot(client.as_ref(), model, &hub.revision, &CHECKPOINT_FILES)?;
    if let Some(what) = without_language_model(snapshot.dir())? {
        check_no_llm(
            &model.to_string(),
            what,
            conversion.llm.as_deref(),
            &options,
        )?;
    }
    let weights = snapshot.weights(match conversion.llm {
        None => Tensors::All,
        Some(_) => Tensors::Only {
            label: "vision",
            is_wanted: &is_vision_side,
        },
    })?;
    let bar = progress::bytes(weights.bytes(), "fetching");
    let dir = weights.fetch(&|n| bar.inc(n))?;
    bar.finish_and_clear();
    options.origin = Some(Origin {
        model: model.to_string(),
        revision: snapshot.commit().to_owned(),
    });
    drop(weights);
    drop(snapshot);
    let code = convert(Conversion::plan(
        std::slice::from_ref(&dir),
        conversion.llm.as_deref(),
        out,
        options,
    )?)?;
    eprintln!("what was fetched is kept in {}", dir.display());
    Ok(code)
}

fn default_cache() -> Result<PathBuf> {
    directories::qbridge("XDG_CACHE_HOME", ".cache")
        .map(|cache| cache.join("hub"))
        .context("neither XDG_CACHE_HOME nor HOME is set; give --cache")
}
