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
        /// Which of the answers it belongs to, from 0.
        choice: usize,
        /// Token id in the language model's vocabulary.
        id: i32,
        /// Text to append to the answer.
        text: String,
        /// Log-probabilities of the tokens that `text` completes, where they were
        /// asked for. The token that ends an answer has none.
        logprobs: Vec<TokenLogprobs>,
    },
    /// An answer is complete; nothing of it follows, and after the last nothing.
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

/// What the model made of one token: its own distribution, before biases, penalties,
/// temperature and whatever else has a say in the draw.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was taken.
    pub token: TokenLogprob,
    /// The likeliest tokens, best first, as many as were asked for.
    pub top: Vec<TokenLogprob>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: i32,
    /// The bytes it stands for, not always whole characters; none for control tokens.
    pub bytes: Vec<u8>,
    /// The same to read, with U+FFFD for what is no character; a control token's name.
    pub text: String,
    /// Natural logarithm of its probability; `-inf` where that is 0.
    pub logprob: f32,
}

/// What a finished answer used and took.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Which of the answers this is, from 0.
    pub choice: usize,
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// Rows and tokens.
    pub usage: Usage,
    /// Seconds spent in each stage.
    pub timings: Timings,
    /// Text held back for a stop string that did not come, or for a UTF-8
    /// character that stayed incomplete; belongs at the end of the answer.
    pub text: String,
    /// Log-probabilities of tokens whose text was held back.
    pub logprobs: Vec<TokenLogprobs>,
    /// Mean log-probability of the answer's tokens, the one that ended it included: where
    /// log-probabilities were asked for, and with beams, there after biases and penalties.
    pub mean_logprob: Option<f32>,
}

/// Rows of the prompt and tokens of one answer.
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

/// Seconds by stage: sums of [`crate::stages::Stages`]. A picture found in the cache
/// costs none of those before the engine.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Timings {
    /// Decoding the encoded picture.
    pub image_decode: f64,
    /// Resizing it and turning it into normalized pixels.
    pub preprocess: f64,
    /// The ViT, with the pictures of others that waited together.
    pub vit: f64,
    /// Q-Former and projection, likewise. A GPU computes in its own time: the ViT's
    /// is told here then.
    pub qformer: f64,
    /// Waiting for a slot.
    pub queue: f64,
    /// From admission to the first token's logits.
    pub prefill: f64,
    /// From the first token to the last.
    pub decode: f64,
}

impl Timings {
    /// Each stage by its name, in the order in which a request passes them.
    pub fn stages(&self) -> [(&'static str, f64); 7] {
        [
            ("image_decode", self.image_decode),
            ("preprocess", self.preprocess),
            ("vit", self.vit),
            ("qformer", self.qformer),
            ("queue", self.queue),
            ("prefill", self.prefill),
            ("decode", self.decode),
        ]
    }
}
