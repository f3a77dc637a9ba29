//! What a request is told while it runs: tokens, then one summary or one error.
//!
//! The engine sends these over a bounded channel; `cli` and `server` read them.

use crate::Error;

/// One step in the life of a request.
#[derive(Debug)]
pub enum Event {
    /// A sampled token. `text` is what became readable with it, and is empty
    /// while a UTF-8 character or a possible stop string is still incomplete.
    Token {
        /// Token id in the language model's vocabulary.
        id: i32,
        /// Text to append to the answer.
        text: String,
    },
    /// The answer is complete; nothing follows.
    Done(Summary),
    /// The request failed; nothing follows. Comes first where the request
    /// itself is at fault (unreadable picture, prompt beyond the context).
    Error(Error),
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-generation token, a stop id or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

/// What a finished request used and took.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// Rows and tokens.
    pub usage: Usage,
    /// Seconds spent in each stage.
    pub timings: Timings,
    /// Text held back for a stop string that did not come, or for a UTF-8
    /// character that stayed incomplete; belongs at the end of the answer.
    pub text: String,
}

/// Rows of the prompt and tokens of the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// All rows of the prompt: text tokens and soft-prompt rows.
    pub prompt_tokens: usize,
    /// The soft-prompt rows among them.
    pub image_tokens: usize,
    /// The rows of the prompt that were in the KV cache already, those of pictures
    /// included.
    pub cached_tokens: usize,
    /// Sampled tokens, the one that ended the answer included.
    pub completion_tokens: usize,
}

/// Seconds by stage. Stages before the engine are filled in by
/// [`crate::model::Model`]; a picture found in the cache costs none of them.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Timings {
    /// Decoding the picture and turning it into normalized pixels.
    pub preprocess: f64,
    /// ViT, Q-Former and projection.
    pub vision: f64,
    /// Waiting for a slot.
    pub queue: f64,
    /// From admission to the first token's logits.
    pub prefill: f64,
    /// From the first token to the last.
    pub decode: f64,
}
