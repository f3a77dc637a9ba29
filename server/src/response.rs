//! Answers and their pieces as OpenAI writes them.

use bridge::event::{FinishReason, Summary, TokenLogprob, TokenLogprobs, Usage};
use serde_json::{Map, Value, json};

use crate::request::Kind;

/// OpenAI's way to say "as good as impossible", since JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// What all pieces of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
    kind: Kind,
    /// Whether log-probabilities are told.
    logprobs: bool,
}

/// One of the answers to a prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) finish_reason: Option<FinishReason>,
}

impl Head {
    pub(crate) fn new(kind: Kind, model: &str, logprobs: bool) -> Head {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Head {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: crate::unix_seconds(),
            model: model.to_owned(),
            kind,
            logprobs,
        }
    }

    /// A whole answer.
    pub(crate) fn completion(&self, choices: &[Choice], usage: Usage) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let choices = choices.iter().enumerate().map(|(index, choice)| {
            let text = &choice.text;
            let said = match self.kind {
                Kind::Chat => {
                    json!({"message": {"role": "assistant", "content": text, "refusal": null}})
                }
                Kind::Text => json!({ "text": text }),
            };
            let logprobs = self.logprobs(&choice.logprobs, &mut 0);
            self.choice(index, said, logprobs, choice.finish_reason)
        });
        let mut answer = self.object(object, choices.collect());
        answer["usage"] = self::usage(usage);
        answer
    }

    /// The piece before the first of a choice; a text has none.
    pub(crate) fn opening(&self, choice: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let said = json!({ "delta": delta });
        (self.kind == Kind::Chat).then(|| self.chunk(self.choice(choice, said, Value::Null, None)))
    }

    /// A piece of a choice. `offset` counts the characters of its tokens.
    pub(crate) fn piece(
        &self,
        choice: usize,
        text: &str,
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) -> Value {
        let said = match self.kind {
            Kind::Chat => json!({"delta": {"content": text}}),
            Kind::Text => json!({ "text": text }),
        };
        let logprobs = match logprobs {
            [] => Value::Null,
            logprobs => self.logprobs(logprobs, offset),
        };
        self.chunk(self.choice(choice, said, logprobs, None))
    }

    /// The piece that says why a choice ends.
    pub(crate) fn ending(&self, summary: &Summary) -> Value {
        let said = match self.kind {
            Kind::Chat => json!({"delta": {}}),
            Kind::Text => json!({"text": ""}),
        };
        let reason = Some(summary.finish_reason);
        self.chunk(self.choice(summary.choice, said, Value::Null, reason))
    }

    /// The piece that holds the usage.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.object(self.chunk_object(), Vec::new());
        chunk["usage"] = self::usage(usage);
        chunk
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        }
    }

    fn chunk(&self, choice: Value) -> Value {
        self.object(self.chunk_object(), vec![choice])
    }

    fn choice(
        &self,
        index: usize,
        mut said: Value,
        logprobs: Value,
        finish_reason: Option<FinishReason>,
    ) -> Value {
        said["index"] = json!(index);
        said["logprobs"] = logprobs;
        said["finish_reason"] = match finish_reason {
            Some(FinishReason::Stop) => json!("stop"),
            Some(FinishReason::Length) => json!("length"),
            None => Value::Null,
        };
        said
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// The log-probabilities of tokens, the first of which stands at character `offset`.
    fn logprobs(&self, tokens: &[TokenLogprobs], offset: &mut usize) -> Value {
        match self.kind {
            _ if !self.logprobs => Value::Null,
            Kind::Chat => {
                let content: Vec<Value> = tokens
                    .iter()
                    .map(|of| {
                        let mut token = token(&of.token);
                        token["top_logprobs"] = of.top.iter().map(self::token).collect();
                        token
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
            Kind::Text => {
                let text = |of: &TokenLogprob| of.text.clone();
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|of| {
                        let start = *offset;
                        *offset += of.token.text.chars().count();
                        start
                    })
                    .collect();
                let top = |of: &TokenLogprobs| {
                    let top = of.top.iter();
                    let top = top.map(|of| (text(of), json!(of.logprob.max(LEAST_LOGPROB))));
                    top.collect::<Map<String, Value>>()
                };
                json!({
                    "tokens": tokens.iter().map(|of| text(&of.token)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|of| of.token.logprob.max(LEAST_LOGPROB)).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}

/// A token; a control token stands for no bytes.
fn token(of: &TokenLogprob) -> Value {
    json!({
        "token": of.text,
        "bytes": (!of.bytes.is_empty()).then_some(&of.bytes),
        "logprob": of.logprob.max(LEAST_LOGPROB),
    })
}

/// Pictures count with the rows they take in the prompt.
fn usage(usage: Usage) -> Value {
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
