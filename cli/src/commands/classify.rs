//! `qbridge classify`: pictures to labels by CLIP, which was never trained on them.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bridge::bundle::MANIFEST_FILE;
use bridge::matcher::Matcher;
use bridge::model::default_device;
use qformer::checkpoint::Compute;
use qformer::clip::{Clip, IMAGENET_TEMPLATES};
use qformer::image::{ImageLimits, decode};
use serde::Serialize;

use super::print_json;
use crate::args::ClassifyArgs;
use crate::input::read_image;
use crate::progress;

/// What `--json` prints of a picture.
#[derive(Debug, Serialize)]
struct Classified<'a> {
    image: &'a Path,
    labels: Vec<Label<'a>>,
}

#[derive(Debug, Serialize)]
struct Label<'a> {
    label: &'a str,
    probability: f32,
}

/// Runs the command.
pub fn run(args: &ClassifyArgs) -> Result<ExitCode> {
    let text = labels(args)?;
    let labels: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    if labels.is_empty() {
        bail!("{}: no labels", args.labels.display());
    }
    let spinner = progress::spinner(format!("loading {}", args.checkpoint.display()));
    let compute = Compute {
        products: args.vision.into(),
        ..Compute::on(&default_device()?)
    };
    let clip = Opened::open(&args.checkpoint, &compute)?;
    let clip = clip.clip(&args.checkpoint)?;
    let classes = match args.templates.is_empty() {
        true => clip.class_features(&labels, &IMAGENET_TEMPLATES)?,
        false => clip.class_features(&labels, &args.templates)?,
    };
    spinner.finish_and_clear();
    for (n, image) in args.images.iter().enumerate() {
        let picture = decode(&read_image(image)?, &ImageLimits::default())
            .with_context(|| image.display().to_string())?;
        let features = clip.image_features(&clip.pixels(&[picture])?)?;
        let probabilities = clip.classify(&features, &classes)?.squeeze(0)?;
        let probabilities = probabilities.to_vec1::<f32>()?;
        let mut found: Vec<Label> = labels
            .iter()
            .zip(probabilities)
            .map(|(label, probability)| Label { label, probability })
            .collect();
        found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        found.truncate(args.top as usize);
        let classified = Classified {
            image,
            labels: found,
        };
        match args.json {
            true => print_json(&classified)?,
            false => print_table(&classified, n == 0)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A CLIP, in a bundle or a checkpoint.
enum Opened {
    Bundle(Box<Matcher>),
    Checkpoint(Box<Clip>),
}

impl Opened {
    fn open(dir: &Path, compute: &Compute) -> bridge::Result<Self> {
        Ok(match dir.join(MANIFEST_FILE).exists() {
            true => {
                let matcher = Matcher::open(dir, compute.products, &compute.device)?;
                Self::Bundle(Box::new(matcher))
            }
            false => Self::Checkpoint(Box::new(Clip::open(dir, compute)?)),
        })
    }

    fn clip(&self, dir: &Path) -> Result<&Clip> {
        match self {
            Self::Checkpoint(clip) => Ok(clip),
            Self::Bundle(matcher) => matcher.heads().as_clip().with_context(|| {
                format!(
                    "{}: this is a {}: labels are weighed at the temperature that a CLIP was trained with, and no other \
                     bundle has one; `qbridge match` compares a picture with texts",
                    dir.display(),
                    matcher.manifest().family
                )
            }),
        }
    }
}

fn print_table(classified: &Classified, is_first: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if is_first {
        writeln!(out, "probability  image  label")?;
    }
    let image = classified.image.display();
    for Label { label, probability } in &classified.labels {
        writeln!(out, "{probability:11.4}  {image}  {label}")?;
    }
    out.flush()
}

/// The text of the labels' file, or of standard input.
fn labels(args: &ClassifyArgs) -> Result<String> {
    if args.labels != Path::new("-") {
        return std::fs::read_to_string(&args.labels)
            .with_context(|| args.labels.display().to_string());
    }
    if args.images.iter().any(|image| image == Path::new("-")) {
        bail!("standard input holds a picture or the labels, not both: name one as a file");
    }
    std::io::read_to_string(std::io::stdin()).context("standard input")
}
