//! `qbridge search`: pictures of an index by a text or a picture.
//!
//! - `again`: finds pictures again that were indexed, to read them beside a text

mod again;

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bridge::bundle::Manifest;
use search::{Hit, Index};
use serde::Serialize;

use super::index::check_bundle;
use super::{bundle_hash, print_json};
use crate::args::SearchArgs;
use crate::heads::Heads;
use crate::input::read_image;
use crate::progress::spinner;
use again::Again;

/// What `--json` prints of a picture that was found.
#[derive(Debug, Serialize)]
struct Found<'a> {
    /// What was searched for.
    #[serde(flatten)]
    query: Query<'a>,
    image: &'a str,
    similarity: f32,
    /// Of those that were read again.
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f32>,
    /// Why one could not be read again.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Query<'a> {
    Text(&'a str),
    QueryImage(&'a Path),
}

/// Runs the command.
pub fn run(args: &SearchArgs) -> Result<ExitCode> {
    let texts = texts(args)?;
    let index = open(&args.index)?;
    let bundle = args.bundle.as_ref().unwrap_or(&index.about().bundle_dir);
    let manifest = Manifest::read(bundle).with_context(|| match args.bundle {
        Some(_) => "--bundle".to_owned(),
        None => format!(
            "the bundle {} that made {} is not where it was: name it with --bundle",
            index.about().bundle,
            args.index.display()
        ),
    })?;
    check_bundle(
        &args.index,
        index.about(),
        &bundle_hash(&manifest),
        &manifest.name,
    )?;
    let heads = Heads::open(bundle, args.vision)?;
    if args.rerank.is_some() {
        heads.must_match("--rerank")?;
    }
    let mut printer = Printer {
        is_json: args.json,
        has_probability: args.rerank.is_some(),
        has_query: texts.len() + args.images.len() > 1,
        is_first: true,
    };
    let mut failed = false;
    let mut again = Again::new(index.about().image_column.as_deref())?;
    for text in &texts {
        let features = heads.text_features(&[text])?.concat();
        let k = args.top.max(args.rerank.unwrap_or_default());
        let hits = search(args, &index, &features, k)?;
        let mut found: Vec<Found> = (hits.iter())
            .map(|hit| found(&index, hit, Query::Text(text)))
            .collect();
        if let Some(k) = args.rerank {
            let first = found.len().min(k as usize);
            rerank(&heads, &mut again, text, &mut found[..first])?;
        }
        found.truncate(args.top as usize);
        failed |= found.iter().any(|found| found.error.is_some());
        printer.print(&found)?;
    }
    for image in &args.images {
        let named = || image.display().to_string();
        let seen = heads.see(&read_image(image)?).with_context(named)?;
        let features = heads.picture_features(&seen)?.concat();
        let hits = search(args, &index, &features, args.top)?;
        let found: Vec<Found> = (hits.iter())
            .map(|hit| found(&index, hit, Query::QueryImage(image)))
            .collect();
        printer.print(&found)?;
    }
    Ok(match failed {
        false => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
    })
}

fn open(path: &Path) -> Result<Index> {
    let spinner = spinner(format!("opening {}", path.display()));
    let index = Index::open(path)?;
    spinner.finish_and_clear();
    Ok(index)
}

fn search(args: &SearchArgs, index: &Index, features: &[f32], k: u32) -> Result<Vec<Hit>> {
    Ok(match args.exact {
        true => index.search_exact(features, k as usize)?,
        false => index.search(features, k as usize)?,
    })
}

fn found<'a>(index: &'a Index, hit: &Hit, query: Query<'a>) -> Found<'a> {
    Found {
        query,
        image: index.name(hit.picture),
        similarity: hit.similarity,
        probability: None,
        error: None,
    }
}

/// Puts pictures in the order of the matching head; those that cannot be read go last.
fn rerank(heads: &Heads, again: &mut Again, text: &str, found: &mut [Found]) -> Result<()> {
    let names: Vec<&str> = found.iter().map(|found| found.image).collect();
    let spinner = spinner(format!("reading {} pictures again", names.len()));
    again.read(&names, |place, picture| {
        let probability = picture.and_then(|file| {
            let seen = heads.see(&file)?;
            Ok(heads.probabilities(&seen, &[text])?)
        });
        if let Some(found) = found.get_mut(place) {
            match probability {
                Ok(probability) => found.probability = probability.first().copied(),
                Err(error) => found.error = Some(format!("{error:#}")),
            }
        }
    })?;
    spinner.finish_and_clear();
    let order = |found: &Found| found.probability.unwrap_or(-1.0);
    found.sort_by(|a, b| order(b).total_cmp(&order(a)));
    Ok(())
}

/// The texts of the command line, or those of standard input.
fn texts(args: &SearchArgs) -> Result<Vec<String>> {
    if args.texts != ["-"] {
        return Ok(args.texts.clone());
    }
    if args.images.iter().any(|image| image == Path::new("-")) {
        bail!("standard input holds a picture or the texts, not both: name one as an argument");
    }
    let lines = std::io::stdin().lock().lines();
    let lines: Vec<String> = lines
        .collect::<std::io::Result<_>>()
        .context("standard input")?;
    if lines.is_empty() {
        bail!("standard input holds no texts");
    }
    Ok(lines)
}

/// Prints a table, or JSON lines.
struct Printer {
    is_json: bool,
    has_probability: bool,
    /// Whether there are several queries to tell apart.
    has_query: bool,
    is_first: bool,
}

impl Printer {
    fn print(&mut self, found: &[Found]) -> Result<()> {
        if self.is_json {
            return found.iter().try_for_each(print_json);
        }
        let mut out = std::io::stdout().lock();
        if std::mem::take(&mut self.is_first) {
            let probability = if self.has_probability {
                "probability  "
            } else {
                ""
            };
            let query = if self.has_query { "  query" } else { "" };
            writeln!(out, "similarity  {probability}image{query}")?;
        }
        for found in found {
            write!(out, "{:10.4}  ", found.similarity)?;
            if self.has_probability {
                match found.probability {
                    Some(probability) => write!(out, "{probability:11.4}  ")?,
                    None => write!(out, "{:>11}  ", "-")?,
                }
            }
            write!(out, "{}", found.image)?;
            match found.query {
                _ if !self.has_query => {}
                Query::Text(text) => write!(out, "  {text}")?,
                Query::QueryImage(path) => write!(out, "  {}", path.display())?,
            }
            writeln!(out)?;
            if let Some(error) = &found.error {
                eprintln!("qbridge: {}: {error}", found.image);
            }
        }
        Ok(out.flush()?)
    }
}
