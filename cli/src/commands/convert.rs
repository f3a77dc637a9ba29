//! `qbridge convert`, and `qbridge bundle` for parts that are ready: a bundle
//! from a published checkpoint.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bridge::convert::{Conversion, ConvertOptions};
use hub::ModelName;
use prompts::Layout;

use super::pull;
use crate::args::{BundleArgs, ConversionArgs, ConvertArgs, NamingArgs};
use crate::progress;

/// Runs `qbridge convert`; prints the bundle's directory.
pub fn run(args: &ConvertArgs) -> Result<ExitCode> {
    if let Some(model) = hub_model(&args.sources) {
        return pull::pull(&model, &args.out, &args.hub, &args.conversion)
            .context("not a file or directory here, so taken for a model of the hub");
    }
    let llm = args.conversion.llm.as_deref();
    let options = conversion_options(&args.conversion)?;
    convert(Conversion::plan(&args.sources, llm, &args.out, options)?)
}

/// The model of the hub that the sources name, where they are no paths.
fn hub_model(sources: &[PathBuf]) -> Option<ModelName> {
    match sources {
        [source] if !source.exists() => source.to_str()?.parse().ok(),
        _ => None,
    }
}

/// What the arguments ask of a conversion.
pub fn conversion_options(args: &ConversionArgs) -> Result<ConvertOptions> {
    Ok(ConvertOptions {
        llm_quant: args.llm_quant,
        vision: Some(args.vision),
        image_size: args.image_size.map(usize::from),
        qformer_tokenizer: args.qformer_tokenizer.clone(),
        ..naming_options(&args.naming)?
    })
}

/// Runs `qbridge bundle`; prints the bundle's directory.
pub fn run_bundle(args: &BundleArgs) -> Result<ExitCode> {
    convert(Conversion::plan(
        std::slice::from_ref(&args.checkpoint),
        Some(&args.llm),
        &args.out,
        naming_options(&args.naming)?,
    )?)
}

/// Runs a conversion; prints the bundle's directory.
pub fn convert(conversion: Conversion) -> Result<ExitCode> {
    let bar = progress::percent(conversion.bytes(), "converting");
    let bundle = conversion.run(&|n| bar.inc(n))?;
    bar.finish_and_clear();
    writeln!(std::io::stdout(), "{}", bundle.dir().display())?;
    Ok(ExitCode::SUCCESS)
}

fn naming_options(args: &NamingArgs) -> Result<ConvertOptions> {
    Ok(ConvertOptions {
        name: args.name.clone(),
        layout: args.layout.as_deref().map(layout).transpose()?,
        licenses: args.licenses.iter().cloned().collect(),
        ..ConvertOptions::default()
    })
}

/// A preset by name, or a TOML file.
fn layout(name: &str) -> Result<Layout> {
    if Path::new(name).extension().is_some_and(|e| e == "toml") {
        let text = std::fs::read_to_string(name).with_context(|| name.to_owned())?;
        return toml::from_str(&text).with_context(|| name.to_owned());
    }
    Ok(Layout::preset(name)?)
}
