//! The stages of a bundle without a language model: what `qbridge embed`, `match` and `index` do with a picture and a text.

use anyhow::{Context, Result, bail};
use bridge::matcher::Matcher;
use bridge::model::default_device;

use super::report::{Report, Stage, Subject};
use super::timer::Timer;
use super::{finished, picture_name};
use crate::args::{BenchArgs, StageGroup};
use crate::machine::Machine;
use crate::progress;

/// A text as people write them beside pictures.
const TEXT: &str = "a brown dog that runs over a meadow";

const QUESTION: &str = "what is in the picture?";

/// Loads the bundle and measures its stages.
///
/// # Errors
/// It cannot be loaded, or has nothing of what `--only` names.
pub fn measure(args: &BenchArgs, picture: &[u8]) -> Result<Report> {
    let spinner = progress::spinner(format!("loading {}", args.bundle.display()));
    let matcher = Matcher::open(&args.bundle, args.engine.vision.into(), &default_device()?)?;
    spinner.finish_and_clear();
    Ok(Report {
        stages: stages(args, &matcher, picture)?,
        subject: Subject::comparing(matcher.manifest(), args, picture.len()),
        machine: Machine::here(),
    })
}

fn stages(args: &BenchArgs, matcher: &Matcher, picture: &[u8]) -> Result<Vec<Stage>> {
    let abilities = matcher.abilities();
    let bundle = args.bundle.display();
    match args.only {
        Some(StageGroup::LanguageModel) => bail!(
            "{bundle}: this bundle has no language model to measure: leave out --only language-model"
        ),
        Some(StageGroup::Captions) if !abilities.captions => bail!(
            "{bundle}: this bundle writes no captions that could be measured: leave out --only captions"
        ),
        _ => {}
    }
    let timer = Timer::new(args);
    let wants = |group| args.only.is_none_or(|only| only == group);
    let mut stages = Vec::new();
    if wants(StageGroup::Vision) {
        let measured = of_pictures(matcher, picture, &timer);
        stages.extend(measured.with_context(|| picture_name(args))?);
    }
    if args.only.is_none() {
        stages.extend(of_texts(matcher, picture, &timer)?);
    }
    if wants(StageGroup::Captions) && abilities.captions {
        let options = matcher.default_caption();
        let caption = || {
            Ok(matcher
                .heads()
                .caption(&matcher.vision(picture)?, &options)?)
        };
        let measured = timer.timed("caption", caption);
        stages.push(measured.with_context(|| picture_name(args))?.1);
    }
    Ok(stages)
}

/// From a picture file to its features.
fn of_pictures(matcher: &Matcher, picture: &[u8], timer: &Timer) -> Result<Vec<Stage>> {
    let heads = matcher.heads();
    let (image, decode) = timer.timed("decode picture", || Ok(matcher.decode(picture)?))?;
    let (pixels, preprocess) = timer.timed("preprocess", || Ok(matcher.preprocess(&image)?))?;
    let pixels = pixels.unsqueeze(0)?;
    let (vision, vit) = timer.timed("ViT", || finished(heads.vision(&pixels)?))?;
    let mut stages = vec![decode, preprocess, vit];
    // A CLIP's ViT ends in them.
    if matcher.abilities().compares && heads.as_clip().is_none() {
        let features = || finished(heads.image_features(&vision)?);
        stages.push(timer.timed("features of a picture", features)?.1);
    }
    Ok(stages)
}

/// What is done with a text, for a picture that has been through the ViT.
fn of_texts(matcher: &Matcher, picture: &[u8], timer: &Timer) -> Result<Vec<Stage>> {
    let (heads, abilities) = (matcher.heads(), matcher.abilities());
    let vision = matcher.vision(picture)?;
    let mut stages = Vec::new();
    if abilities.compares {
        let features = || finished(heads.text_features(&[TEXT])?);
        stages.push(timer.timed("features of a text", features)?.1.of_texts());
    }
    if abilities.matches {
        let probability = || Ok(heads.match_probability(&vision, &[TEXT])?);
        stages.push(timer.timed("match a text", probability)?.1.of_texts());
    }
    if abilities.answers {
        let options = matcher.default_caption();
        let answer = || Ok(heads.answer(&vision, &[QUESTION], &options)?);
        stages.push(timer.timed("answer a question", answer)?.1.of_texts());
    }
    Ok(stages)
}
