//! Answers and their pieces as OpenAI writes them.

use bridge::event::{FinishReason, Summary};
use serde_json::{Value, json};

/// What all pieces of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Head {
    pub(crate) fn new(model: &str) -> Head {
        Head {
            id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
            created: crate::unix_seconds(),
            model: model.to_owned(),
        }
    }

    /// A whole answer.
    pub(crate) fn completion(&self, text: &str, summary: &Summary) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": null,
                "finish_reason": finish_reason(summary),
            }],
            "usage": usage(summary),
        })
    }

    /// A piece of an answer.
    pub(crate) fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "delta": delta,
                "logprobs": null,
                "finish_reason": finish_reason,
            }],
        })
    }

    /// The piece that holds the usage.
    pub(crate) fn usage_chunk(&self, summary: &Summary) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": usage(summary),
        })
    }
}

pub(crate) fn finish_reason(summary: &Summary) -> &'static str {
    match summary.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Pictures count with the rows they take in the prompt.
fn usage(summary: &Summary) -> Value {
    let usage = summary.usage;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"image_tokens": usage.image_tokens},
    })
}
