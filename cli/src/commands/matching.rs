//! `qbridge match` and `qbridge embed`: pictures and texts in one feature space.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bridge::matcher::Matcher;
use bridge::model::default_device;
use candle_core::Tensor;
use serde::Serialize;

use super::print_json;
use crate::args::{EmbedArgs, MatchArgs, VisionProducts};
use crate::input::read_image;
use crate::progress;

/// What `match --json` prints of a text.
#[derive(Debug, Serialize)]
struct Matched<'a> {
    text: &'a str,
    similarity: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f32>,
}

/// What `embed` prints.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Embedded<'a> {
    Image {
        image: &'a Path,
        features: Vec<Vec<f32>>,
    },
    Text {
        text: &'a str,
        features: Vec<f32>,
    },
}

/// Runs `qbridge match`.
pub fn run_match(args: &MatchArgs) -> Result<ExitCode> {
    let texts = texts(args)?;
    let file = read_image(&args.image)?;
    let matcher = open(&args.bundle, args.vision)?;
    let vision = vision(&matcher, &args.image, &file)?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let matches: Vec<(f32, Option<f32>)> = match matcher.abilities().matches {
        true => {
            let matches = matcher.match_texts(&vision, &texts)?.into_iter();
            let both = matches.map(|found| (found.similarity, Some(found.probability)));
            both.collect()
        }
        // A CLIP has no head that would say more.
        false => {
            let similarities = matcher.similarities(&vision, &texts)?.into_iter();
            similarities.map(|similarity| (similarity, None)).collect()
        }
    };
    let mut out = std::io::stdout().lock();
    if !args.json {
        let probability = match matcher.abilities().matches {
            true => "probability  ",
            false => "",
        };
        writeln!(out, "similarity  {probability}text")?;
    }
    for (text, (similarity, probability)) in texts.into_iter().zip(matches) {
        let matched = Matched {
            text,
            similarity,
            probability,
        };
        match (args.json, probability) {
            (true, _) => {
                serde_json::to_writer(&mut out, &matched).map_err(std::io::Error::from)?;
                writeln!(out)?;
            }
            (false, Some(probability)) => {
                writeln!(out, "{similarity:10.4}  {probability:11.4}  {text}")?;
            }
            (false, None) => writeln!(out, "{similarity:10.4}  {text}")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `qbridge embed`.
pub fn run_embed(args: &EmbedArgs) -> Result<ExitCode> {
    let matcher = open(&args.bundle, args.vision)?;
    for image in &args.images {
        let vision = vision(&matcher, image, &read_image(image)?)?;
        let features = matcher.heads().image_features(&vision)?;
        print_json(&Embedded::Image {
            image,
            features: rows(&features.squeeze(0)?)?,
        })?;
    }
    for text in &args.texts {
        let features = matcher.heads().text_features(&[text])?;
        let features = rows(&features)?.into_iter().flatten().collect();
        print_json(&Embedded::Text { text, features })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(features: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(features.to_vec2::<f32>()?)
}

/// The texts of the command line, or those of standard input.
fn texts(args: &MatchArgs) -> Result<Vec<String>> {
    if args.texts != ["-"] {
        return Ok(args.texts.clone());
    }
    if args.image == Path::new("-") {
        bail!("standard input holds the picture or the texts, not both: name one as an argument");
    }
    let lines: Vec<String> = std::io::stdin()
        .lock()
        .lines()
        .collect::<std::io::Result<_>>()
        .context("standard input")?;
    if lines.is_empty() {
        bail!("standard input holds no texts");
    }
    Ok(lines)
}

fn open(bundle: &Path, products: VisionProducts) -> Result<Matcher> {
    let spinner = progress::spinner(format!("loading {}", bundle.display()));
    let matcher = Matcher::open(bundle, products.into(), &default_device()?)?;
    spinner.finish_and_clear();
    Ok(matcher)
}

/// A picture through the ViT; what is wrong with it names its file.
fn vision(matcher: &Matcher, path: &Path, file: &[u8]) -> Result<Tensor> {
    matcher
        .vision(file)
        .with_context(|| path.display().to_string())
}
