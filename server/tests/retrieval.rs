//! Embeddings, rankings and scores, as their clients see them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bridge::retriever::{RetrievalRequest, Want};
use common::*;
use serde_json::{Value, json};
use server::{Abilities, ApiKeys, ServeOptions};
use tokio::sync::oneshot;

async fn post_to(path: &str, backend: Fake, body: &Value) -> Answer {
    let request = request("POST", path, body.to_string());
    send(router(backend, ServeOptions::default()), request).await
}

fn with(body: Value, fields: Value) -> Value {
    let mut body = body;
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn embed(fields: Value) -> Answer {
    let body = with(json!({"model": "demo"}), fields);
    post_to("/v1/embeddings", script(dog), &body).await
}

/// A text and three pictures.
fn ranking(fields: Value) -> Value {
    let documents = [picture(), picture(), picture()];
    with(
        json!({"model": "demo", "query": "a dog", "documents": documents}),
        fields,
    )
}

/// Compares as [`compared`] does, and keeps the requests.
fn keeping() -> (Fake, Arc<Mutex<Vec<RetrievalRequest>>>) {
    let seen: Arc<Mutex<Vec<RetrievalRequest>>> = Arc::default();
    let kept = seen.clone();
    let backend = script(dog).comparing(move |request| {
        let outcome = at_once(Ok(compared(&request)));
        kept.lock().unwrap().push(request);
        outcome
    });
    (backend, seen)
}

#[tokio::test]
async fn a_text_becomes_an_embedding_as_openai_writes_it() {
    let answer = embed(json!({"input": "a dog", "user": "me"})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    let expected = json!({
        "object": "list",
        "model": "demo",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.0, 0.8, 0.0]}],
        "usage": {
            "prompt_tokens": 3, "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 0, "audio_tokens": 0},
        },
    });
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn inputs_keep_their_order_whatever_their_form() {
    let url = picture()["image_url"]["url"].clone();
    let inputs = json!([
        "a",
        picture(),
        {"type": "text", "text": "b"},
        {"image": url},
        {"text": "c"},
        {"image_url": url},
    ]);
    let (backend, seen) = keeping();
    let body = json!({"model": "demo", "input": inputs});
    let answer = post_to("/v1/embeddings", backend, &body).await.json();
    let data = answer["data"].as_array().unwrap();
    let of_pictures: Vec<bool> = data
        .iter()
        .map(|entry| entry["embedding"][2] == 0.0)
        .collect();
    assert_eq!(of_pictures, [false, true, false, true, false, true]);
    for (index, entry) in data.iter().enumerate() {
        assert_eq!(entry["index"], index);
    }
    assert_eq!(answer["usage"]["prompt_tokens"], 3 * 32 + 3 * 3);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].texts, ["a", "b", "c"]);
    assert_eq!(seen[0].pictures.len(), 3);
    assert!(matches!(seen[0].want, Want::Features));
}

#[tokio::test]
async fn a_pictures_rows_are_their_mean_direction_or_all_of_them() {
    let answer = embed(json!({"input": [picture()]})).await.json();
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let row: Vec<f64> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    for (found, expected) in row.iter().zip([half, half, 0.0, 0.0]) {
        assert!((found - expected).abs() < 1e-6, "{row:?}");
    }
    let answer = embed(json!({"input": [picture(), "a"], "return_multivector": true})).await;
    let answer = answer.json();
    let data = &answer["data"];
    assert_eq!(
        data[0]["embeddings"],
        json!([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    );
    assert_eq!(data[1]["embeddings"], json!([[0.6, 0.0, 0.8, 0.0]]));
    assert!(data[0].get("embedding").is_none());
}

#[tokio::test]
async fn base64_holds_the_same_numbers() {
    let answer = embed(json!({"input": "a", "encoding_format": "base64"})).await;
    let text = answer.json()["data"][0]["embedding"].clone();
    let bytes = STANDARD.decode(text.as_str().unwrap()).unwrap();
    let numbers: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert_eq!(numbers, [0.6, 0.0, 0.8, 0.0]);
}

#[tokio::test]
async fn dimensions_are_the_first_ones_brought_back_to_length_1() {
    let answer = embed(json!({"input": ["a", picture()], "dimensions": 2})).await;
    let answer = answer.json();
    assert_eq!(answer["data"][0]["embedding"], json!([1.0, 0.0]));
    let all = embed(json!({"input": "a", "dimensions": 4})).await.json();
    assert_eq!(all["data"][0]["embedding"], json!([0.6, 0.0, 0.8, 0.0]));
    let answer = embed(json!({"input": "a", "dimensions": 5})).await;
    assert_eq!(
        (answer.status.as_u16(), answer.param()),
        (400, json!("dimensions"))
    );
    assert!(
        answer.error()["message"]
            .as_str()
            .unwrap()
            .contains("at most 4")
    );
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_name() {
    for (fields, code, param) in [
        (json!({}), "missing_required_parameter", "input"),
        (json!({"input": ""}), "invalid_value", "input"),
        (json!({"input": []}), "invalid_value", "input"),
        (json!({"input": ["a", ""]}), "invalid_value", "input[1]"),
        (json!({"input": [1, 2]}), "unsupported_parameter", "input"),
        (
            json!({"input": [[1], [2]]}),
            "unsupported_parameter",
            "input",
        ),
        (json!({"input": 3}), "invalid_value", "input"),
        (
            json!({"input": [{"type": "text"}]}),
            "invalid_value",
            "input[0]",
        ),
        (
            json!({"input": [{"type": "text", "image": "data:,"}]}),
            "invalid_value",
            "input[0]",
        ),
        (
            json!({"input": [{"text": "a", "image": "data:,"}]}),
            "invalid_value",
            "input[0]",
        ),
        (
            json!({"input": {"content": [{"text": "a"}, "b"]}}),
            "invalid_value",
            "input.content[1]",
        ),
        (
            json!({"input": [{"content": [{"text": "a"}, {"text": "b"}]}]}),
            "invalid_value",
            "input[0]",
        ),
        (
            json!({"input": {"image": "https://example.com/a.png"}}),
            "remote_image_unsupported",
            "input.image",
        ),
        (
            json!({"input": {"image": "data:image/png;base64,???"}}),
            "invalid_image",
            "input.image",
        ),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "invalid_value",
            "encoding_format",
        ),
        (
            json!({"input": "a", "dimensions": 0}),
            "invalid_value",
            "dimensions",
        ),
        (
            json!({"input": "a", "pooling": "cls"}),
            "unknown_parameter",
            "pooling",
        ),
        (
            json!({"input": vec![picture(); 129]}),
            "invalid_value",
            "input",
        ),
    ] {
        let answer = embed(fields.clone()).await;
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(
            (answer.code().as_str(), answer.param()),
            (code, json!(param)),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn documents_come_in_the_order_of_their_relevance() {
    let answer = post_to("/v1/rerank", script(dog), &ranking(json!({}))).await;
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert!(answer["id"].as_str().unwrap().starts_with("rerank-"));
    assert_eq!(answer["model"], "demo");
    assert_eq!(answer["usage"]["total_tokens"], 3 * 32 + 3);
    let results = answer["results"].as_array().unwrap();
    let found: Vec<(u64, f64)> = results
        .iter()
        .map(|result| {
            let score = result["relevance_score"].as_f64().unwrap();
            assert_eq!(result["probability"], score);
            assert!(result.get("document").is_none());
            (result["index"].as_u64().unwrap(), score)
        })
        .collect();
    // The matching head has the last word: it likes the last most.
    assert_eq!(found, [(2, 0.25), (1, 0.125), (0, 0.0)]);
}

#[tokio::test]
async fn what_the_matching_head_did_not_read_comes_behind() {
    let (backend, seen) = keeping();
    let body = ranking(json!({"itm_top_k": 1}));
    let answer = post_to("/v1/rerank", backend, &body).await.json();
    let result = |place: usize| &answer["results"][place];
    assert_eq!(
        (&result(0)["index"], &result(0)["relevance_score"]),
        (&json!(0), &json!(0.0))
    );
    assert_eq!(result(1)["index"], 1);
    assert_eq!(result(1)["probability"], Value::Null);
    assert_eq!(result(1)["relevance_score"], 0.25 - 1.0);
    let Want::Scores { pairs, matched } = seen.lock().unwrap()[0].want.clone() else {
        panic!("no scores are wanted");
    };
    assert_eq!((pairs, matched), (vec![(0, 0), (1, 0), (2, 0)], 1));
    // Without that head's say there is no less one.
    let answer = post_to("/v1/rerank", script(dog), &ranking(json!({"itm_top_k": 0}))).await;
    assert_eq!(answer.json()["results"][0]["relevance_score"], 0.5);
}

#[tokio::test]
async fn documents_are_cut_to_the_best_and_sent_back_as_asked() {
    let texts = json!(["a", {"text": "b"}, {"type": "text", "text": "c"}]);
    let body = json!({
        "model": "demo", "query": picture(), "documents": texts, "top_n": 2, "return_documents": true,
    });
    let answer = post_to("/v1/rerank", script(dog), &body).await.json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["document"], json!({"type": "text", "text": "c"}));
    assert_eq!(results[1]["document"], json!({"text": "b"}));
    let body = json!({
        "model": "demo", "query": picture(), "return_documents": true,
        "documents": {"content": [{"text": "a"}, {"text": "b"}]},
    });
    let answer = post_to("/v1/rerank", script(dog), &body).await.json();
    assert_eq!(answer["results"][1]["document"], json!({"text": "a"}));
}

#[tokio::test]
async fn pairs_are_scored_one_by_one_or_one_against_all() {
    let body = |one: Value, two: Value| json!({"model": "demo", "text_1": one, "text_2": two});
    let (backend, seen) = keeping();
    let one = body(json!("a"), json!({"content": [picture(), picture()]}));
    let answer = post_to("/v1/score", backend, &one).await.json();
    assert_eq!(answer["object"], "list");
    assert!(answer["id"].as_str().unwrap().starts_with("score-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let entry = json!({
        "index": 1, "object": "score", "score": 0.125, "similarity": 0.25, "probability": 0.125,
    });
    assert_eq!(answer["data"][1], entry);
    let pairs = |place: usize| match &seen.lock().unwrap()[place].want {
        Want::Scores { pairs, .. } => pairs.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(pairs(0), [(0, 0), (1, 0)]);
    let (backend, again) = keeping();
    let both = body(json!(["a", picture()]), json!([picture(), "b"]));
    assert_eq!(post_to("/v1/score", backend, &both).await.status, 200);
    let Want::Scores { pairs, .. } = again.lock().unwrap()[0].want.clone() else {
        panic!("no scores are wanted");
    };
    assert_eq!(pairs, [(1, 0), (0, 1)]);
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_by_name() {
    let score = |one: Value, two: Value| json!({"model": "demo", "text_1": one, "text_2": two});
    let cases = [
        ("/v1/score", score(json!("a"), json!("b")), "text_2[0]"),
        ("/v1/score", score(picture(), picture()), "text_2[0]"),
        (
            "/v1/score",
            score(json!(["a", "b"]), json!([picture()])),
            "text_2",
        ),
        (
            "/v1/score",
            json!({"model": "demo", "text_2": "b"}),
            "text_1",
        ),
        (
            "/v1/rerank",
            ranking(json!({"documents": [picture(), "b"]})),
            "documents[1]",
        ),
        ("/v1/rerank", ranking(json!({"documents": []})), "documents"),
        ("/v1/rerank", ranking(json!({"query": ["a"]})), "query"),
        ("/v1/rerank", ranking(json!({"query": null})), "query"),
        ("/v1/rerank", ranking(json!({"top_n": 0})), "top_n"),
        (
            "/v1/rerank",
            ranking(json!({"rank_fields": ["text"]})),
            "rank_fields",
        ),
    ];
    for (path, body, param) in cases {
        let answer = post_to(path, script(dog), &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.param()),
            (400, json!(param)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_model_is_asked_only_for_what_its_kind_does() {
    let clip = Abilities {
        chats: false,
        completes: false,
        compares: true,
        matches: false,
    };
    let captions = Abilities {
        chats: true,
        compares: false,
        ..clip
    };
    let embedding = json!({"model": "demo", "input": "a"});
    let score = json!({"model": "demo", "text_1": "a", "text_2": picture()});
    let text = json!({"model": "demo", "prompt": "a"});
    let tokens = json!({"prompt": "a"});
    for (path, body, abilities, word) in [
        (
            "/v1/embeddings",
            &embedding,
            Abilities::LANGUAGE_MODEL,
            "clip",
        ),
        ("/v1/embeddings", &embedding, captions, "blip2-itm"),
        ("/v1/rerank", &ranking(json!({})), captions, "blip2-itm"),
        ("/v1/score", &score, captions, "blip2-itm"),
        ("/v1/chat/completions", &chat(json!({})), clip, "captions"),
        ("/v1/completions", &text, captions, "language model"),
        ("/tokenize", &tokens, clip, "language model"),
        (
            "/detokenize",
            &json!({"tokens": [1]}),
            clip,
            "language model",
        ),
    ] {
        let backend = script(dog).with_abilities(abilities);
        let answer = post_to(path, backend, body).await;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.code(), "model_not_supported");
        assert_eq!(answer.param(), "model");
        let message = answer.error()["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("\"demo\"") && message.contains(word),
            "{message}"
        );
    }
    // Similarity is all that a CLIP says.
    let body = ranking(json!({"itm_top_k": 0}));
    let answer = post_to("/v1/rerank", script(dog).with_abilities(clip), &body).await;
    assert_eq!(answer.json()["results"][0]["relevance_score"], 0.5);
    let body = ranking(json!({"itm_top_k": 2}));
    let answer = post_to("/v1/rerank", script(dog).with_abilities(clip), &body).await;
    assert_eq!(answer.param(), "itm_top_k");
}

#[tokio::test]
async fn failures_of_the_model_have_their_status() {
    type Make = fn() -> bridge::Error;
    let cases: [(Make, u16, &str); 3] = [
        (|| bridge::Error::QueueFull { limit: 3 }, 429, "queue_full"),
        (|| bridge::Error::QueueTimeout, 503, "queue_timeout"),
        (|| bridge::Error::RetrievalFailed, 500, "internal_error"),
    ];
    for (error, status, code) in cases {
        for at_submission in [true, false] {
            let backend = script(dog).comparing(move |_| match at_submission {
                true => Err(error()),
                false => at_once(Err(error())),
            });
            let body = json!({"model": "demo", "input": "a"});
            let answer = post_to("/v1/embeddings", backend, &body).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (status, code)
            );
        }
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up_and_its_work_cancelled() {
    let held: Arc<Mutex<Vec<oneshot::Sender<_>>>> = Arc::default();
    let kept = held.clone();
    let backend = script(dog).comparing(move |_| {
        let (sender, receiver) = oneshot::channel();
        kept.lock().unwrap().push(sender);
        Ok(receiver)
    });
    let options = ServeOptions {
        first_token_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    };
    let body = json!({"model": "demo", "input": "a"}).to_string();
    let answer = send(
        router(backend, options),
        request("POST", "/v1/embeddings", body),
    )
    .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (504, "timeout")
    );
    assert!(held.lock().unwrap()[0].is_closed());
}

#[tokio::test]
async fn keys_and_room_are_asked_for_before_the_body() {
    let options = ServeOptions {
        api_keys: Some(ApiKeys::new(["k"]).unwrap()),
        ..ServeOptions::default()
    };
    for path in ["/v1/embeddings", "/v1/rerank", "/v1/score"] {
        let asked = request("POST", path, "{}");
        let answer = send(router(script(dog), options.clone()), asked).await;
        assert_eq!(answer.status, 401, "{path}");
        let full = ServeOptions {
            max_requests: 0,
            ..ServeOptions::default()
        };
        let answer = send(router(script(dog), full), request("POST", path, "{}")).await;
        assert_eq!(answer.code(), "queue_full", "{path}");
        assert!(answer.headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn what_was_compared_is_counted() {
    let router = router(script(dog), ServeOptions::default());
    let body = json!({"model": "demo", "input": ["a", picture()]}).to_string();
    let asked = request("POST", "/v1/embeddings", body);
    assert_eq!(send(router.clone(), asked).await.status, 200);
    let answer = send(router, request("GET", "/metrics", "")).await;
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        "qbridge_requests_total{route=\"/v1/embeddings\",status=\"200\"} 1",
        "qbridge_prompt_tokens_total{model=\"demo\"} 35",
        "qbridge_image_tokens_total{model=\"demo\"} 32",
        "qbridge_texts_total{model=\"demo\"} 11",
        "qbridge_pairs_total{model=\"demo\"} 13",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
}
