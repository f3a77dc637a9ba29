//! `qbridge convert`, and `qbridge bundle` for parts that are ready: a bundle
//! from a published checkpoint.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bridge::convert::{Conversion, ConvertOptions};
use prompts::Layout;

use crate::args::{BundleArgs, ConvertArgs, NamingArgs};
use crate::progress;

/// Runs `qbridge convert`; prints the bundle's directory.
pub fn run(args: &ConvertArgs) -> Result<ExitCode> {
    let options = ConvertOptions {
        vision: Some(args.vision),
        ..options(&args.naming)?
    };
    convert(Conversion::plan(
        &args.sources,
        &args.llm,
        &args.naming.out,
        options,
    )?)
}

/// Runs `qbridge bundle`; prints the bundle's directory.
pub fn run_bundle(args: &BundleArgs) -> Result<ExitCode> {
    convert(Conversion::plan(
        std::slice::from_ref(&args.checkpoint),
        &args.llm,
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
