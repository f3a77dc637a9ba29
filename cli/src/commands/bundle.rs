//! `qbridge bundle`: a bundle from a checkpoint and a GGUF.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bridge::bundle::{CreateOptions, create};
use prompts::Layout;

use crate::args::BundleArgs;
use crate::progress;

/// Runs the command; prints the bundle's directory.
pub fn run(args: &BundleArgs) -> Result<ExitCode> {
    let options = CreateOptions {
        name: args.name.clone(),
        layout: args.layout.as_deref().map(layout).transpose()?,
        licenses: args.licenses.iter().cloned().collect(),
    };
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let bar = progress::bytes(size(&args.llm), "bundling");
    let bundle = create(&args.checkpoint, &args.llm, &args.out, options, &|n| {
        bar.inc(n);
    })?;
    bar.finish_and_clear();
    println!("{}", bundle.dir().display());
    Ok(ExitCode::SUCCESS)
}

/// A preset by name, or a TOML file.
fn layout(name: &str) -> Result<Layout> {
    if Path::new(name).extension().is_some_and(|e| e == "toml") {
        let text = std::fs::read_to_string(name).with_context(|| name.to_owned())?;
        return toml::from_str(&text).with_context(|| name.to_owned());
    }
    Ok(Layout::preset(name)?)
}
