//! Text completions, tokens and metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::body::Body;
use bridge::event::Event;
use bridge::model::Prompt;
use common::*;
use serde_json::{Value, json};
use server::ServeOptions;

fn text(fields: Value) -> Value {
    let mut body = json!({"model": "demo", "prompt": "Once"});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn post_to(path: &str, backend: Fake, body: &Value) -> Answer {
    let request = request("POST", path, body.to_string());
    send(router(backend, ServeOptions::default()), request).await
}

#[tokio::test]
async fn a_text_goes_on() {
    let (backend, seen) = recorder();
    let body =
        text(json!({"max_tokens": 5, "stop": "\n", "temperature": 1, "seed": 3, "user": "u"}));
    let answer = post_to("/v1/completions", backend, &body).await;
    assert_eq!(answer.status, 200);
    let mut answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    for volatile in ["id", "created"] {
        answer.as_object_mut().unwrap().remove(volatile);
    }
    let whole = json!({
        "object": "text_completion",
        "model": "demo",
        "system_fingerprint": "fp_0123456789",
        "choices": [{"index": 0, "text": "A dog.", "logprobs": null, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 45, "completion_tokens": 4, "total_tokens": 49,
            "prompt_tokens_details": {"cached_tokens": 12, "image_tokens": 32, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        },
    });
    assert_eq!(sorted(answer), sorted(whole));
    let seen = seen.lock().unwrap();
    assert!(matches!(&seen[0].prompt, Prompt::Raw(text) if text == "Once"));
    assert!(seen[0].images.is_empty());
    assert_eq!(
        (seen[0].max_tokens, seen[0].sampling.seed),
        (Some(5), Some(3))
    );
    assert_eq!(seen[0].stop, ["\n"]);
}

#[tokio::test]
async fn a_text_is_streamed() {
    let body = text(
        json!({"prompt": ["Once"], "stream": true, "stream_options": {"include_usage": true}}),
    );
    let events = post_to("/v1/completions", script(dog), &body)
        .await
        .events();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(49))
    );
    let texts: Vec<&str> = chunks
        .iter()
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["A", " dog", ".", ""]);
    for chunk in chunks {
        assert_eq!(chunk["object"], "text_completion");
        assert_eq!(chunk["id"], usage["id"]);
        assert_eq!(chunk["usage"], Value::Null);
    }
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], Value::Null);
}

#[tokio::test]
async fn what_a_text_cannot_have_is_refused_by_name() {
    for (fields, code, param) in [
        (
            json!({"prompt": null}),
            "missing_required_parameter",
            "prompt",
        ),
        (json!({"prompt": 3}), "invalid_value", "prompt"),
        (json!({"echo": true}), "unsupported_parameter", "echo"),
        (json!({"suffix": "end"}), "unsupported_parameter", "suffix"),
        (json!({"best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"logprobs": 6}), "invalid_value", "logprobs"),
        (
            json!({"logit_bias": {"1": 101}}),
            "invalid_value",
            "logit_bias",
        ),
        (json!({"n": 0}), "invalid_value", "n"),
        (
            json!({"response_format": {"type": "text"}}),
            "unknown_parameter",
            "response_format",
        ),
        (json!({"messages": []}), "unknown_parameter", "messages"),
        (json!({"temperature": 3}), "invalid_value", "temperature"),
    ] {
        let backend = fake(|_| panic!("the model was asked"));
        let answer = post_to("/v1/completions", backend, &text(fields.clone())).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(
            (answer.code().as_str(), answer.param()),
            (code, json!(param)),
            "{fields}"
        );
    }
    let nothing = json!({"echo": false, "suffix": "", "best_of": 1, "n": 1, "logit_bias": {}, "logprobs": null});
    assert_eq!(
        post_to("/v1/completions", script(dog), &text(nothing))
            .await
            .status,
        200
    );
    let long = || {
        vec![Event::Error(bridge::Error::ContextLengthExceeded {
            n_prompt_tokens: 5000,
            n_ctx: 4096,
        })]
    };
    let answer = post_to("/v1/completions", script(long), &text(json!({}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.param()),
        (400, json!("prompt"))
    );
}

#[tokio::test]
async fn tokens_and_back() {
    let answer = post_to("/tokenize", script(dog), &json!({"prompt": "Hi!"})).await;
    let tokens = json!({"tokens": [72, 105, 33], "count": 3, "max_model_len": 4096});
    assert_eq!(sorted(answer.json()), sorted(tokens));
    let answer = post_to(
        "/detokenize",
        script(dog),
        &json!({"model": "demo", "tokens": [72, 105]}),
    )
    .await;
    assert_eq!(answer.json(), json!({"prompt": "Hi"}));
    for (path, body, status, param) in [
        ("/tokenize", json!({}), 400, "prompt"),
        ("/tokenize", json!({"prompt": 1}), 400, "prompt"),
        (
            "/tokenize",
            json!({"prompt": "a", "add_special_tokens": true}),
            400,
            "add_special_tokens",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "model": "other"}),
            404,
            "model",
        ),
        ("/detokenize", json!({"tokens": [300]}), 400, "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), 400, "tokens"),
        (
            "/detokenize",
            json!({"tokens": [5_000_000_000_i64]}),
            400,
            "tokens",
        ),
        ("/detokenize", json!({"tokens": ["a"]}), 400, "tokens"),
    ] {
        let answer = post_to(path, script(dog), &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.param()),
            (status, json!(param)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn what_was_done_is_counted() {
    let router = router(script(dog), ServeOptions::default());
    for body in [
        chat(json!({})),
        chat(json!({"stream": true})),
        chat(json!({"n": 0})),
    ] {
        send(router.clone(), post(&body)).await;
    }
    for path in [
        "/v1/models/made",
        "/v1/models/up",
        "/made/up/path",
        "/made/up/too",
    ] {
        send(router.clone(), request("GET", path, Body::empty())).await;
    }
    let answer = send(router, request("GET", "/metrics", Body::empty())).await;
    assert!(
        answer.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let metrics = String::from_utf8(answer.body).unwrap();
    for line in [
        r#"qbridge_requests_total{route="/v1/chat/completions",status="200"} 2"#,
        r#"qbridge_requests_total{route="/v1/chat/completions",status="400"} 1"#,
        r#"qbridge_requests_total{route="/v1/models/{*id}",status="404"} 2"#,
        r#"qbridge_requests_total{route="none",status="404"} 2"#,
        "qbridge_requests_limit 64",
        r#"qbridge_requests_running{model="demo"} 3"#,
        r#"qbridge_requests_waiting{model="demo"} 2"#,
        r#"qbridge_prompt_tokens_total{model="demo"} 90"#,
        r#"qbridge_image_tokens_total{model="demo"} 64"#,
        r#"qbridge_generation_tokens_total{model="demo"} 8"#,
        r#"qbridge_time_to_first_token_seconds_count{model="demo"} 2"#,
        r#"qbridge_inter_token_latency_seconds_count{model="demo"} 4"#,
        r#"qbridge_request_duration_seconds_count{model="demo"} 2"#,
        r#"qbridge_stage_seconds_count{model="demo",stage="vit"} 2"#,
        r#"qbridge_stage_seconds_count{model="demo",stage="decode"} 2"#,
        r#"qbridge_vision_cache_hits_total{model="demo"} 5"#,
        r#"qbridge_vision_cache_bytes{model="demo"} 7"#,
        "# EOF",
    ] {
        assert!(
            metrics.lines().any(|have| have == line),
            "{line}\n{metrics}"
        );
    }
    assert!(!metrics.contains("made"));
}
