//! `qbridge ask`: one picture or the frames of a video, one question.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bridge::ErrorKind;
use bridge::event::{FinishReason, Timings, Usage};
use bridge::model::{Prompt, Request};
use prompts::{Message, Part, Role};
use qformer::image::{ImageLimits, decode};
use serde::Serialize;

use super::{collect, open_model, print_json, sampling};
use crate::args::AskArgs;
use crate::input::read_image;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Output<'a> {
    text: &'a str,
    token_ids: &'a [i32],
    finish_reason: FinishReason,
    usage: Usage,
    timings: Timings,
}

/// Runs the command.
pub fn run(args: &AskArgs) -> Result<ExitCode> {
    let paths: Vec<&Path> = std::iter::once(&args.image)
        .chain(&args.frames)
        .map(PathBuf::as_path)
        .collect();
    let images = paths
        .iter()
        .map(|path| read_image(path))
        .collect::<Result<Vec<_>>>()?;
    let model = open_model(&args.bundle, &args.engine, &args.generation, 1)?;
    let prompt = if args.raw {
        Prompt::Raw(args.question.clone())
    } else {
        Prompt::Chat(vec![Message {
            role: Role::User,
            parts: (0..images.len())
                .map(Part::Image)
                .chain([Part::Text(args.question.clone())])
                .collect(),
        }])
    };
    let mut events = model.submit(Request {
        images: images.clone(),
        max_tokens: args.generation.max_tokens.map(|n| n as usize),
        ..Request::new(prompt, sampling(&args.generation, model.default_sampling()))
    })?;
    let mut out = std::io::stdout().lock();
    let answer = collect(&mut events, |text| {
        if args.json || text.is_empty() {
            return Ok(());
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    });
    let answer = match answer {
        Err(error) if concerns_image(&error) => {
            let is_at_fault = |file: &[u8]| decode(file, &ImageLimits::default()).is_err();
            let found = paths
                .iter()
                .zip(&images)
                .find(|(_, file)| is_at_fault(file));
            let path = found.map_or(args.image.as_path(), |(path, _)| path);
            return Err(error).with_context(|| path.display().to_string());
        }
        answer => answer?,
    };
    if args.json {
        drop(out);
        print_json(&Output {
            text: &answer.text,
            token_ids: &answer.token_ids,
            finish_reason: answer.summary.finish_reason,
            usage: answer.summary.usage,
            timings: answer.summary.timings,
        })?;
    } else {
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a picture is at fault, so that its file should be named.
fn concerns_image(error: &anyhow::Error) -> bool {
    error.downcast_ref::<bridge::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::InvalidImage | ErrorKind::ImageTooLarge
        )
    })
}
