//! Answers and their pieces as OpenAI writes them.

use std::time::Duration;

use bridge::event::{FinishReason, Timings, TokenLogprob, TokenLogprobs, Usage};
use prompts::{CallReader, Said};
use serde_json::{Map, Value, json};

use crate::request::Kind;
use crate::tools::{call_id, said};

/// OpenAI's way to say "as good as impossible", since JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// What all pieces of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    kind: Kind,
    /// Whether log-probabilities are told.
    logprobs: bool,
    /// Whether the tier is told: who asks for one is told which it was.
    names_tier: bool,
}

/// One of the answers to a prompt.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    reader: Option<CallReader>,
    text: String,
    calls: Vec<Call>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Clone)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Choice {
    /// An answer that `reader` reads calls out of, where there may be any.
    pub(crate) fn new(reader: Option<CallReader>) -> Choice {
        Choice {
            reader,
            text: String::new(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            finish_reason: None,
        }
    }

    /// Takes what the model wrote.
    pub(crate) fn push(&mut self, text: &str) {
        let said = said(&mut self.reader, text);
        self.take(said);
    }

    /// The model wrote all that it will.
    pub(crate) fn finish(&mut self, reason: FinishReason) {
        if let Some(reader) = &mut self.reader {
            let said = reader.finish();
            self.take(said);
        }
        self.finish_reason = Some(reason);
    }

    fn take(&mut self, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Text(text) => self.text.push_str(&text),
                Said::Call(name) => self.calls.push(Call {
                    id: call_id(self.reader.as_ref()),
                    name,
                    arguments: String::new(),
                }),
                Said::Arguments(more) => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments.push_str(&more);
                    }
                }
            }
        }
    }

    /// OpenAI's `message`.
    fn message(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.text, "refusal": null});
        if self.calls.is_empty() {
            return message;
        }
        if self.text.is_empty() {
            message["content"] = Value::Null;
        }
        let call = |call: &Call| {
            json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        };
        message["tool_calls"] = self.calls.iter().map(call).collect();
        message
    }
}

impl Head {
    pub(crate) fn new(
        kind: Kind,
        model: &str,
        fingerprint: &str,
        logprobs: bool,
        names_tier: bool,
    ) -> Head {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Head {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: crate::unix_seconds(),
            model: model.to_owned(),
            fingerprint: fingerprint.to_owned(),
            kind,
            logprobs,
            names_tier: names_tier && kind == Kind::Chat,
        }
    }

    /// A whole answer.
    pub(crate) fn completion(
        &self,
        choices: &[Choice],
        usage: Usage,
        timings: Option<(Timings, Duration)>,
    ) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Text => "text_completion",
        };
        let choices = choices.iter().enumerate().map(|(index, choice)| {
            let said = match self.kind {
                Kind::Chat => json!({ "message": choice.message() }),
                Kind::Text => json!({ "text": choice.text }),
            };
            let logprobs = self.logprobs(&choice.logprobs, &mut 0);
            let reason = choice.finish_reason;
            let reason = reason.map(|reason| finish_reason(reason, choice.calls.len()));
            self.choice(index, said, logprobs, reason)
        });
        let mut answer = self.object(object, choices.collect());
        answer["usage"] = self::usage(usage);
        add_timings(&mut answer, timings);
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
        self.said(choice, said, logprobs, offset)
    }

    /// The piece that begins the call of this index in a choice.
    pub(crate) fn call(
        &self,
        choice: usize,
        (index, id, name): (usize, &str, &str),
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) -> Value {
        let call = json!({
            "index": index,
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": ""},
        });
        let said = json!({"delta": {"tool_calls": [call]}});
        self.said(choice, said, logprobs, offset)
    }

    /// A piece of the arguments of such a call.
    pub(crate) fn arguments(
        &self,
        choice: usize,
        (index, arguments): (usize, &str),
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) -> Value {
        let call = json!({"index": index, "function": {"arguments": arguments}});
        let said = json!({"delta": {"tool_calls": [call]}});
        self.said(choice, said, logprobs, offset)
    }

    fn said(
        &self,
        choice: usize,
        said: Value,
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) -> Value {
        let logprobs = match logprobs {
            [] => Value::Null,
            logprobs => self.logprobs(logprobs, offset),
        };
        self.chunk(self.choice(choice, said, logprobs, None))
    }

    /// The piece that says why a choice, with so many calls in it, ends.
    pub(crate) fn ending(&self, choice: usize, reason: FinishReason, calls: usize) -> Value {
        let said = match self.kind {
            Kind::Chat => json!({"delta": {}}),
            Kind::Text => json!({"text": ""}),
        };
        let reason = Some(finish_reason(reason, calls));
        self.chunk(self.choice(choice, said, Value::Null, reason))
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
        finish_reason: Option<&str>,
    ) -> Value {
        said["index"] = json!(index);
        said["logprobs"] = logprobs;
        said["finish_reason"] = json!(finish_reason);
        said
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        });
        if self.names_tier {
            object["service_tier"] = json!("default");
        }
        object
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

/// OpenAI's word for why an answer ends that holds so many calls.
fn finish_reason(reason: FinishReason, calls: usize) -> &'static str {
    match reason {
        FinishReason::Stop if calls > 0 => "tool_calls",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
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

/// Adds seconds by stage, and those of the whole request, to the last that is sent of an answer.
pub(crate) fn add_timings(last: &mut Value, timings: Option<(Timings, Duration)>) {
    if let Some((timings, total)) = timings {
        last["timings"] = timings.stages().into_iter().collect();
        last["timings"]["total"] = json!(total.as_secs_f64());
    }
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
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })
}
