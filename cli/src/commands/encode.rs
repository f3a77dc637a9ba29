//! `qbridge encode`: a picture's tensors at each stage.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use bridge::image_encoder::ImageEncoder;
use bridge::model::default_device;
use serde::Serialize;

use super::print_json;
use crate::args::EncodeArgs;
use crate::input::read_image;
use crate::progress;

/// One repetition, in seconds.
#[derive(Debug, Serialize)]
struct Timing {
    batch: u16,
    seconds: f64,
    preprocess: f64,
    forward: f64,
}

/// Runs the command.
pub fn run(args: &EncodeArgs) -> Result<ExitCode> {
    let file = read_image(&args.image)?;
    let spinner = progress::spinner(format!("encoding {}", args.image.display()));
    let encoder = ImageEncoder::open(&args.model, args.vision.into(), &default_device()?)?;
    let mut last = None;
    let repeated = |batch| std::iter::repeat_n(batch, args.repeat as usize);
    for batch in args.batch.iter().copied().flat_map(repeated) {
        let copies = usize::from(batch);
        let instructions: Vec<&str> = match &args.instruction {
            Some(text) => vec![text; copies],
            None => Vec::new(),
        };
        let started = Instant::now();
        let pixels = encoder
            .pixels(&file)
            .with_context(|| args.image.display().to_string())?
            .unsqueeze(0)
            .and_then(|pixels| pixels.repeat((copies, 1, 1, 1)))
            .map_err(bridge::Error::from)?;
        let preprocess = started.elapsed().as_secs_f64();
        let encoding = encoder.forward(&pixels, &instructions)?;
        let seconds = started.elapsed().as_secs_f64();
        if args.timings {
            spinner.suspend(|| {
                print_json(&Timing {
                    batch,
                    seconds,
                    preprocess,
                    forward: seconds - preprocess,
                })
            })?;
        }
        last = Some((pixels, encoding));
    }
    spinner.finish_and_clear();
    if let (Some(path), Some((pixels, encoding))) = (&args.out, last) {
        let tensors = HashMap::from([
            ("pixels", pixels),
            ("vision", encoding.vision),
            ("queries", encoding.queries),
            ("soft_prompt", encoding.soft_prompt),
        ]);
        candle_core::safetensors::save(&tensors, path)
            .with_context(|| path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
