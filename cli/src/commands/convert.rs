//! `qbridge convert`, and `qbridge bundle` for parts that are ready: a bundle
//! from a published checkpoint.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bridge::convert::{Conversion, ConvertOptions, LlmQuant};
use prompts::Layout;

use crate::args::{BundleArgs, ConvertArgs, NamingArgs};
use crate::progress;

/// Runs `qbridge convert`; prints the bundle's directory.
pub fn run(args: &ConvertArgs) -> Result<ExitCode> {
    let is_gguf = args.llm.as_ref().is_some_and(|llm| !llm.is_dir());
    if let (true, Some(quant)) = (is_gguf, args.llm_quant) {
        bail!(
            "--llm-quant {} is for weights that become a GGUF, and --llm is one already; leave one out",
            quant.name()
        );
    }
    let options = ConvertOptions {
        llm_quant: (!is_gguf).then(|| args.llm_quant.unwrap_or(LlmQuant::Q4KM)),
        vision: Some(args.vision),
        image_size: args.image_size.map(usize::from),
        ..options(&args.naming)?
    };
    convert(Conversion::plan(
        &args.sources,
        args.llm.as_deref(),
        &args.naming.out,
        options,
    )?)
}

/// Runs `qbridge bundle`; prints the bundle's directory.
pub fn run_bundle(args: &BundleArgs) -> Result<ExitCode> {
    convert(Conversion::plan(
        std::slice::from_ref(&args.checkpoint),
        Some(&args.llm),
        &args.naming.out,
        options(&args.naming)?,
    )?)
}

fn convert(conversion: Conversion) -> Result<ExitCode> {
    let bar = progress::percent(conversion.bytes(), "converting");
    let bundle = conversion.run(&|n| bar.inc(n))?;
    bar.finish_and_clear();
    println!("{}", bundle.dir().display());
    Ok(ExitCode::SUCCESS)
}

fn options(args: &NamingArgs) -> Result<ConvertOptions> {
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
