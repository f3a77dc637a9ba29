//! `qbridge caption`: many pictures, one JSON line each.

use std::collections::VecDeque;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use bridge::event::{Event, FinishReason, Usage};
use bridge::model::{Model, Prompt, Request};
use prompts::{Message, Part, Role};
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use super::{collect, open_model, print_json, sampling};
use crate::args::CaptionArgs;
use crate::input::read_image;
use crate::progress;

/// One line of output.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line {
    Caption {
        image: String,
        text: String,
        finish_reason: FinishReason,
        usage: Usage,
    },
    Failed {
        image: String,
        error: String,
    },
}

/// Runs the command.
pub fn run(args: &CaptionArgs) -> Result<ExitCode> {
    let model = open_model(&args.bundle, &args.engine, &args.generation, args.slots)?;
    let bar = progress::pictures(args.images.len());
    let mut in_flight: VecDeque<(&Path, Result<Receiver<Event>>)> = VecDeque::new();
    let mut images = args.images.iter();
    let mut failed = false;
    loop {
        while in_flight.len() < usize::from(args.slots) {
            let Some(image) = images.next() else { break };
            in_flight.push_back((image, submit(&model, image, args)));
        }
        let Some((image, events)) = in_flight.pop_front() else {
            break;
        };
        let image = image.display().to_string();
        let answer = events.and_then(|mut events| collect(&mut events, |_| Ok(())));
        let line = match answer {
            Ok(answer) => Line::Caption {
                image,
                text: answer.text.trim().to_owned(),
                finish_reason: answer.summary.finish_reason,
                usage: answer.summary.usage,
            },
            Err(error) => {
                failed = true;
                Line::Failed {
                    image,
                    error: format!("{error:#}"),
                }
            }
        };
        bar.suspend(|| print_json(&line))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn submit(model: &Model, image: &Path, args: &CaptionArgs) -> Result<Receiver<Event>> {
    let file = read_image(image)?;
    // A picture without words is captioned as the layout says.
    let mut parts = vec![Part::Image(0)];
    parts.extend(args.prompt.clone().map(Part::Text));
    let prompt = Prompt::Chat(vec![Message {
        role: Role::User,
        parts,
    }]);
    Ok(model.submit(Request {
        images: vec![file],
        max_tokens: args.generation.max_tokens.map(|n| n as usize),
        ..Request::new(prompt, sampling(&args.generation, model.default_sampling()))
    })?)
}
