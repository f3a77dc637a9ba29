//! Messages and a picture, as a request for a caption or an answer.
//!
//! What chat requests may ask of a language model and such a model cannot do is refused by its
//! field's name.

use prompts::{Message, Part, Role};
use qformer::stage1::CaptionOptions;
use tokio::sync::mpsc::{Receiver, channel};

use super::{Reply, RetrievalRequest, Retriever, Want};
use crate::event::Event;
use crate::model::{Prompt, Request};
use crate::{Error, Result};

/// A caption comes as one piece, and one event ends it.
const EVENTS: usize = 2;

/// Most beams of a caption: memory grows with them, and captions no better.
const MAX_BEAMS: usize = 16;

impl Retriever {
    /// Starts a chat request: one picture in one user message; its text is how the caption begins
    /// (BLIP for captions) or the question (BLIP for question answering).
    ///
    /// # Errors
    /// The messages or a setting have no meaning for such a model, or the queue is full. A picture
    /// at fault is told by the first event.
    pub fn submit_chat(&self, request: Request) -> Result<Receiver<Event>> {
        let options = self.caption_options(&request)?;
        let text = self.words(&request)?;
        let retrieval = RetrievalRequest {
            pictures: request.images,
            texts: text.into_iter().collect(),
            want: Want::Caption(options),
            stages: request.stages,
        };
        self.check(&retrieval)?;
        let (reply, events) = channel(EVENTS);
        self.queue(retrieval, Reply::Events(reply))?;
        Ok(events)
    }

    fn caption_options(&self, request: &Request) -> Result<CaptionOptions> {
        let sampling = &request.sampling;
        let defaults = self.manifest.generation.sampling();
        for (field, is_asked, reason) in [
            (
                "temperature",
                sampling.temperature > 0.0,
                "the likeliest tokens are taken: 0",
            ),
            ("n", sampling.n > 1, "there is one answer"),
            ("num_beams", sampling.num_beams > MAX_BEAMS, "at most 16"),
            (
                "frequency_penalty",
                sampling.frequency_penalty != 0.0,
                "must be 0",
            ),
            (
                "presence_penalty",
                sampling.presence_penalty != 0.0,
                "must be 0",
            ),
            (
                "repetition_penalty",
                sampling.repetition_penalty != defaults.repetition_penalty,
                "the bundle's own holds",
            ),
            (
                "stop",
                !request.stop.is_empty(),
                "captions end by themselves or at max_tokens",
            ),
            (
                "logit_bias",
                !request.logit_bias.is_empty(),
                "this model chooses its tokens alone",
            ),
            (
                "logprobs",
                request.top_logprobs.is_some(),
                "tokens are not told one by one",
            ),
            (
                "response_format",
                request.format.is_some(),
                "answers are plain text",
            ),
            (
                "tools",
                request.tools.is_some(),
                "this model calls no functions",
            ),
        ] {
            if is_asked {
                let reason = format!(
                    "this {} has no language model; {reason}",
                    self.manifest.family
                );
                return Err(Error::Unsupported { field, reason });
            }
        }
        Ok(CaptionOptions {
            max_tokens: request
                .max_tokens
                .unwrap_or(self.manifest.generation.max_tokens),
            min_tokens: sampling.min_tokens,
            num_beams: sampling.num_beams.max(1),
            length_penalty: sampling.length_penalty,
        })
    }

    /// What stands beside the picture.
    fn words(&self, request: &Request) -> Result<Option<String>> {
        let invalid = |reason: &str| {
            Err(Error::InvalidRequest {
                reason: format!(
                    "this {} has no language model: {reason}",
                    self.manifest.family
                ),
            })
        };
        let Prompt::Chat(messages) = &request.prompt else {
            return invalid("it takes messages with a picture alone");
        };
        let [
            Message {
                role: Role::User,
                parts,
            },
        ] = messages.as_slice()
        else {
            return invalid("send one user message");
        };
        let mut text = Vec::new();
        for part in parts {
            if let Part::Text(words) = part {
                text.push(words.trim());
            }
        }
        let text = text.join(" ").trim().to_owned();
        if request.images.len() != 1 {
            return invalid("send one picture");
        }
        let is_begun = self.matcher.heads().as_blip().is_some();
        match (text.is_empty(), self.abilities.answers) {
            (true, true) => invalid("ask a question about the picture"),
            (true, false) => Ok(None),
            (false, false) if !is_begun => {
                invalid("it captions the picture and reads no text: send the picture alone")
            }
            (false, _) => Ok(Some(text)),
        }
    }
}
