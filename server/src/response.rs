//! Answers and their pieces as OpenAI writes them.

use bridge::event::{FinishReason, Summary};
use serde_json::{Value, json};

use crate::request::Kind;

/// What all pieces of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
    kind: Kind,
}

impl Head {
    pub(crate) fn new(kind: Kind, model: &str) -> Head {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Head {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: crate::unix_seconds(),
            model: model.to_owned(),
            kind,
        }
    }

    /// A whole answer.
    pub(crate) fn completion(&self, text: &str, summary: &Summary) -> Value {
        let (object, said) = match self.kind {
            Kind::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                ("chat.completion", ("message", message))
            }
            Kind::Text => ("text_completion", ("text", json!(text))),
        };
        let mut answer = self.object(object, said, Some(finish_reason(summary)));
        answer["usage"] = usage(summary);
        answer
    }

    /// The piece before the first; a text has none.
    pub(crate) fn opening(&self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(delta, None))
    }

    /// A piece of an answer.
    pub(crate) fn piece(&self, text: &str) -> Value {
        match self.kind {
            Kind::Chat => self.chunk(json!({ "content": text }), None),
            Kind::Text => self.object("text_completion", ("text", json!(text)), None),
        }
    }

    /// The piece that says why the answer ends.
    pub(crate) fn ending(&self, summary: &Summary) -> Value {
        let reason = Some(finish_reason(summary));
        match self.kind {
            Kind::Chat => self.chunk(json!({}), reason),
            Kind::Text => self.object("text_completion", ("text", json!("")), reason),
        }
    }

    fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> Value {
        self.object("chat.completion.chunk", ("delta", delta), finish_reason)
    }

    fn object(&self, object: &str, said: (&str, Value), finish_reason: Option<&str>) -> Value {
        let (name, said) = said;
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                name: said,
                "logprobs": null,
                "finish_reason": finish_reason,
            }],
        })
    }

    /// The piece that holds the usage.
    pub(crate) fn usage_chunk(&self, summary: &Summary) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": usage(summary),
        })
    }
}

fn finish_reason(summary: &Summary) -> &'static str {
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
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
    })
}
