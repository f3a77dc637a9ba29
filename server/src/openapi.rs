//! `GET /openapi.json`: the API as a document.
//!
//! Routes get into the router and into the document by the same call ([`Api`]), and the schemas of requests are made
//! from the tables that requests are read by.

use std::sync::Arc;

use axum::handler::Handler;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use bridge::event::Timings;
use serde_json::{Map, Value, json};

use crate::App;
use crate::backend::ABILITIES;
use crate::schema::{Object, reference};

/// A route, in the document's words.
#[derive(Debug)]
pub(crate) struct Operation {
    /// The path, as it is written in the document and (but for a last parameter that may hold slashes) in the router.
    pub(crate) path: &'static str,
    /// Its name in clients that are made from the document.
    pub(crate) id: &'static str,
    pub(crate) summary: &'static str,
    /// What is sent to it, where anything is.
    pub(crate) request: Option<&'static Object>,
    /// Media types of its answers, and their schemas.
    pub(crate) answers: &'static [(&'static str, &'static str)],
    /// Statuses of its failures, but for those that every guarded route has.
    pub(crate) failures: &'static [u16],
    /// Whether it is for everyone, with a key or without.
    pub(crate) open: bool,
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// Of a route that reads a body: it is too late, too large, not JSON, or one too many.
const OF_BODIES: &[u16] = &[400, 404, 408, 413, 415, 429, 503];
const OF_ANSWERS: &[u16] = &[400, 404, 408, 413, 415, 429, 503, 504];

const GET: Operation = Operation {
    path: "",
    id: "",
    summary: "",
    request: None,
    answers: &[],
    failures: &[503],
    open: false,
};

pub(crate) const MODELS: Operation = Operation {
    path: "/v1/models",
    id: "listModels",
    summary: "The models of this server",
    answers: &[(JSON, "ModelList")],
    ..GET
};
pub(crate) const MODEL: Operation = Operation {
    path: "/v1/models/{id}",
    id: "retrieveModel",
    summary: "One of them",
    answers: &[(JSON, "Model")],
    failures: &[404, 503],
    ..GET
};
pub(crate) const CHAT: Operation = Operation {
    path: "/v1/chat/completions",
    id: "createChatCompletion",
    summary: "Answer messages; with stream, by events that hold a ChatCompletionChunk each, and [DONE]",
    request: Some(&crate::tables::CHAT),
    answers: &[(JSON, "ChatCompletion"), (EVENTS, "ChatCompletionEvent")],
    failures: OF_ANSWERS,
    ..GET
};
pub(crate) const TEXT: Operation = Operation {
    path: "/v1/completions",
    id: "createCompletion",
    summary: "Go on with a text; with stream, by events that hold a Completion each, and [DONE]",
    request: Some(&crate::tables::TEXT),
    answers: &[(JSON, "Completion"), (EVENTS, "CompletionEvent")],
    failures: OF_ANSWERS,
    ..GET
};
pub(crate) const EMBEDDINGS: Operation = Operation {
    path: "/v1/embeddings",
    id: "createEmbedding",
    summary: "The features of texts and pictures, each of length 1",
    request: Some(&crate::tables::EMBEDDINGS),
    answers: &[(JSON, "EmbeddingList")],
    failures: OF_ANSWERS,
    ..GET
};
pub(crate) const RERANK: Operation = Operation {
    path: "/v1/rerank",
    id: "rerank",
    summary: "Pictures in the order in which they fit a text, or texts a picture",
    request: Some(&crate::tables::RERANK),
    answers: &[(JSON, "Ranking")],
    failures: OF_ANSWERS,
    ..GET
};
pub(crate) const SCORE: Operation = Operation {
    path: "/v1/score",
    id: "score",
    summary: "How well pictures and texts fit, pair by pair",
    request: Some(&crate::tables::SCORE),
    answers: &[(JSON, "ScoreList")],
    failures: OF_ANSWERS,
    ..GET
};
pub(crate) const TOKENIZE: Operation = Operation {
    path: "/tokenize",
    id: "tokenize",
    summary: "The tokens of a text",
    request: Some(&crate::tables::TOKENIZE),
    answers: &[(JSON, "Tokens")],
    failures: OF_BODIES,
    ..GET
};
pub(crate) const DETOKENIZE: Operation = Operation {
    path: "/detokenize",
    id: "detokenize",
    summary: "The text of tokens",
    request: Some(&crate::tables::DETOKENIZE),
    answers: &[(JSON, "Prompt")],
    failures: OF_BODIES,
    ..GET
};
pub(crate) const LOAD: Operation = Operation {
    path: "/models/load",
    id: "loadModel",
    summary: "Loads a model that was unloaded; answers when it is there",
    request: Some(&crate::tables::NAMED),
    answers: &[(JSON, "Model")],
    failures: OF_BODIES,
    ..GET
};
pub(crate) const UNLOAD: Operation = Operation {
    path: "/models/unload",
    id: "unloadModel",
    summary: "Unloads a model, when its answers have ended; answers when its memory is free",
    request: Some(&crate::tables::NAMED),
    answers: &[(JSON, "Model")],
    failures: OF_BODIES,
    ..GET
};
pub(crate) const METRICS: Operation = Operation {
    path: "/metrics",
    id: "metrics",
    summary: "What the server has done, for Prometheus",
    answers: &[("application/openmetrics-text", "Metrics")],
    failures: &[],
    ..GET
};
const DOCUMENT: Operation = Operation {
    path: "/openapi.json",
    id: "openapi",
    summary: "This document",
    answers: &[(JSON, "Document")],
    failures: &[],
    ..GET
};
pub(crate) const HEALTH: Operation = Operation {
    path: "/health",
    id: "health",
    summary: "The process is alive",
    answers: &[(JSON, "Status")],
    failures: &[],
    open: true,
    ..GET
};
pub(crate) const READY: Operation = Operation {
    path: "/ready",
    id: "ready",
    summary: "The models are loaded and warm",
    answers: &[(JSON, "Status")],
    open: true,
    ..GET
};

/// A router beside its description.
pub(crate) struct Api<B> {
    pub(crate) router: Router<Arc<App<B>>>,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl<B: Send + Sync + 'static> Api<B> {
    pub(crate) fn new() -> Api<B> {
        Api {
            router: Router::new(),
            paths: Map::new(),
            schemas: answers(),
        }
    }

    /// Adds a route that is read.
    pub(crate) fn get<H, T>(self, operation: &Operation, handler: H) -> Api<B>
    where
        H: Handler<T, Arc<App<B>>>,
        T: 'static,
    {
        self.add("get", operation, get(handler))
    }

    /// Adds a route that something is sent to.
    pub(crate) fn post<H, T>(self, operation: &Operation, handler: H) -> Api<B>
    where
        H: Handler<T, Arc<App<B>>>,
        T: 'static,
    {
        self.add("post", operation, post(handler))
    }

    fn add(
        mut self,
        method: &str,
        operation: &Operation,
        route: MethodRouter<Arc<App<B>>>,
    ) -> Api<B> {
        self.describe(method, operation);
        // A model's name may hold slashes.
        let path = operation.path.replace("{id}", "{*id}");
        self.router = self.router.route(&path, route);
        self
    }

    fn describe(&mut self, method: &str, operation: &Operation) {
        let content: Map<String, Value> = operation
            .answers
            .iter()
            .map(|&(media, schema)| (media.to_owned(), json!({"schema": reference(schema)})))
            .collect();
        let mut responses = Map::new();
        responses.insert(
            "200".to_owned(),
            json!({"description": operation.summary, "content": content}),
        );
        let guard: &[u16] = if operation.open { &[500] } else { &[401, 500] };
        for status in guard.iter().chain(operation.failures) {
            responses.insert(status.to_string(), failure());
        }
        let mut described = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "responses": responses,
        });
        if operation.open {
            described["security"] = json!([]);
        }
        if operation.path.contains("{id}") {
            described["parameters"] = json!([{
                "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            }]);
        }
        if let Some(object) = operation.request {
            let schema = object.reference(&mut self.schemas);
            described["requestBody"] =
                json!({"required": true, "content": {JSON: {"schema": schema}}});
        }
        let path = self
            .paths
            .entry(operation.path)
            .or_insert_with(|| json!({}));
        path[method] = described;
    }

    /// Adds the document itself, of everything that is there or will be: `later` are routes outside the guard.
    pub(crate) fn with_document(mut self, later: &[&Operation], keys: bool) -> Api<B> {
        self.describe("get", &DOCUMENT);
        for operation in later {
            self.describe("get", operation);
        }
        let document = Arc::new(self.document(keys));
        let serve = move || {
            let document = document.clone();
            async move { Json(document.as_ref().clone()) }
        };
        self.router = self.router.route(DOCUMENT.path, get(serve));
        self
    }

    fn document(&self, keys: bool) -> Value {
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "qbridge",
                "description": "OpenAI's chat completions and embeddings over pictures. Fields that are not described here are \
                                refused, unless they are null.",
                "version": env!("CARGO_PKG_VERSION"),
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": self.paths,
            "components": {"schemas": self.schemas},
        });
        if keys {
            document["components"]["securitySchemes"] =
                json!({"key": {"type": "http", "scheme": "bearer"}});
            document["security"] = json!([{"key": []}]);
        }
        document
    }
}

fn failure() -> Value {
    json!({
        "description": "Why not",
        "content": {JSON: {"schema": reference("Failure")}},
    })
}

/// What the server sends.
fn answers() -> Map<String, Value> {
    let string = json!({"type": "string"});
    let count = json!({"type": "integer", "minimum": 0});
    let nullable = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
    // All of the fields must be there.
    let object = |fields: Value| {
        let names: Vec<&String> = fields.as_object().into_iter().flat_map(Map::keys).collect();
        json!({"type": "object", "required": names, "properties": fields})
    };
    let constant = |value: &str| json!({"type": "string", "const": value});
    let list = |of: Value| json!({"type": "array", "items": of});
    let finish_reason = json!({"type": "string", "enum": ["stop", "length", "tool_calls"]});
    let function = json!({"name": string, "arguments": string});
    let call = json!({"id": string, "type": constant("function"), "function": object(function)});
    let mut piece = object(json!({"index": count}));
    piece["properties"] = call.clone();
    piece["properties"]["index"] = count.clone();
    piece["properties"]["function"]["required"] = json!(["arguments"]);
    let mut delta = object(json!({}));
    delta["properties"] =
        json!({"role": constant("assistant"), "content": string, "tool_calls": list(piece)});
    let mut message = object(json!({
        "role": constant("assistant"),
        "content": nullable(string.clone()),
        "refusal": nullable(string.clone()),
    }));
    message["properties"]["tool_calls"] = list(object(call));
    let completion = |kind: &str, choice: Value| {
        object(json!({
            "id": string,
            "object": constant(kind),
            "created": count,
            "model": string,
            "system_fingerprint": string,
            "choices": list(object(choice)),
        }))
    };
    let with_usage = |mut schema: Value, usage: Value, always: bool| {
        schema["properties"]["usage"] = usage;
        if let (true, Some(required)) = (always, schema["required"].as_array_mut()) {
            required.push(json!("usage"));
        }
        schema
    };
    // In the last that is sent of an answer, where it was asked for.
    let with_timings = |mut schema: Value| {
        schema["properties"]["timings"] = reference("Timings");
        schema
    };
    let seconds = json!({"type": "number", "minimum": 0});
    let stages = Timings::default().stages().map(|(stage, _)| stage);
    let stages = stages.into_iter().chain(["total"]);
    let timings = stages.map(|stage| (stage.to_owned(), seconds.clone()));
    let mut error = object(json!({
        "message": string,
        "type": {"type": "string", "enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
        "param": nullable(string.clone()),
        "code": string,
    }));
    for number in ["n_prompt_tokens", "n_ctx"] {
        error["properties"][number] = count.clone();
    }
    // What stands behind `data:`; `event:` is what a client takes it for where there is none.
    let event = |of: &str| {
        let content = json!({
            "contentMediaType": JSON,
            "contentSchema": {"anyOf": [reference(of), reference("Failure")]},
        });
        let mut event = object(json!({
            "data": {"type": "string", "anyOf": [constant("[DONE]"), content]},
        }));
        event["properties"]["event"] = constant("message");
        event
    };
    let logprobs = || nullable(reference("Logprobs"));
    let schemas = json!({
        "Failure": object(json!({"error": error})),
        "Status": object(json!({"status": constant("ok")})),
        "Model": object(json!({
            "id": string, "object": constant("model"), "created": count, "owned_by": string,
            "status": {"type": "string", "enum": ["loaded", "unloaded"]},
            "capabilities": nullable(list(json!({"type": "string", "enum": ABILITIES}))),
        })),
        "ModelList": object(json!({
            "object": constant("list"), "data": list(reference("Model")),
        })),
        "Tokens": object(json!({
            "tokens": list(count.clone()), "count": count, "max_model_len": count,
        })),
        "Prompt": object(json!({"prompt": string})),
        "Document": {"type": "object"},
        "Metrics": string,
        "ChatCompletionEvent": event("ChatCompletionChunk"),
        "CompletionEvent": event("Completion"),
        "Usage": object(json!({
            "prompt_tokens": count,
            "completion_tokens": count,
            "total_tokens": count,
            "prompt_tokens_details": object(json!({
                "cached_tokens": count, "image_tokens": count, "audio_tokens": count,
            })),
            "completion_tokens_details": object(json!({
                "reasoning_tokens": count,
                "audio_tokens": count,
                "accepted_prediction_tokens": count,
                "rejected_prediction_tokens": count,
            })),
        })),
        "InputUsage": object(json!({
            "prompt_tokens": count,
            "total_tokens": count,
            "prompt_tokens_details": object(json!({
                "cached_tokens": count, "image_tokens": count, "audio_tokens": count,
            })),
        })),
        "Vector": {"anyOf": [list(json!({"type": "number"})), string]},
        "EmbeddingList": object(json!({
            "object": constant("list"),
            "data": list(json!({
                "type": "object",
                "required": ["object", "index"],
                "properties": {
                    "object": constant("embedding"),
                    "index": count,
                    "embedding": reference("Vector"),
                    "embeddings": list(reference("Vector")),
                },
            })),
            "model": string,
            "usage": reference("InputUsage"),
        })),
        "Ranking": object(json!({
            "id": string,
            "model": string,
            "usage": reference("InputUsage"),
            "results": list(json!({
                "type": "object",
                "required": ["index", "relevance_score", "similarity", "probability"],
                "properties": {
                    "index": count,
                    "relevance_score": {"type": "number"},
                    "similarity": {"type": "number"},
                    "probability": nullable(json!({"type": "number"})),
                    "document": {"type": "object"},
                },
            })),
        })),
        "ScoreList": object(json!({
            "id": string,
            "object": constant("list"),
            "created": count,
            "model": string,
            "data": list(object(json!({
                "index": count,
                "object": constant("score"),
                "score": {"type": "number"},
                "similarity": {"type": "number"},
                "probability": nullable(json!({"type": "number"})),
            }))),
            "usage": reference("InputUsage"),
        })),
        "Logprobs": {"type": "object"},
        "Timings": object(timings.collect()),
        "ChatCompletion": with_timings(with_usage(
            completion("chat.completion", json!({
                "index": count,
                "message": message,
                "logprobs": logprobs(),
                "finish_reason": finish_reason,
            })),
            reference("Usage"),
            true,
        )),
        "ChatCompletionChunk": with_timings(with_usage(
            completion("chat.completion.chunk", json!({
                "index": count,
                "delta": delta,
                "logprobs": logprobs(),
                "finish_reason": nullable(finish_reason.clone()),
            })),
            nullable(reference("Usage")),
            false,
        )),
        "Completion": with_timings(with_usage(
            completion("text_completion", json!({
                "index": count,
                "text": string,
                "logprobs": logprobs(),
                "finish_reason": nullable(finish_reason.clone()),
            })),
            nullable(reference("Usage")),
            false,
        )),
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}
