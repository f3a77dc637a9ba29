//! The library on the tiny golden checkpoint.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use qbridge::{CacheType, ErrorKind, Generation, Model, ModelOptions, Picture, Request};
use qbridge_tests::golden;
use serde_json::Value;

/// More than a stream holds that nobody reads.
const MANY_TOKENS: usize = 200;

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

/// A bundle of the golden checkpoint, made once.
fn bundle() -> &'static Path {
    static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("tiny");
        let (checkpoint, llm) = (golden("llm/checkpoint"), golden("llm/llm.gguf"));
        let options = bridge::convert::ConvertOptions::default();
        bridge::convert::Conversion::plan(&[checkpoint], Some(&llm), &out, options)
            .unwrap()
            .run(&|_| ())
            .unwrap();
        (dir, out)
    });
    &BUNDLE.1
}

fn options() -> ModelOptions {
    ModelOptions {
        cache_type: CacheType::F32,
        threads: Some(2),
        ..ModelOptions::default()
    }
}

fn picture(name: &str) -> Picture {
    Picture::open(golden(&format!("llm/pictures/{name}.png"))).unwrap()
}

#[tokio::test]
async fn many_requests_at_once_are_answered_each() {
    // Far more than may wait in the engine.
    let model = Model::open_with(
        bundle(),
        ModelOptions {
            queue: 2,
            slots: 2,
            ..options()
        },
    )
    .await
    .unwrap();
    let golden = json("llm/golden.json");
    let tasks: Vec<_> = golden["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| {
            let request = Request::raw(case["prompt"].as_str().unwrap())
                .picture(picture(case["picture"].as_str().unwrap()))
                .generation(Generation {
                    max_tokens: Some(24),
                    ..Generation::default()
                });
            let model = model.clone();
            tokio::spawn(async move { model.answer(request).await })
        })
        .collect();
    for (task, case) in tasks.into_iter().zip(golden["cases"].as_array().unwrap()) {
        let answer = task.await.unwrap().unwrap();
        assert_eq!(Value::from(answer.token_ids), case["answer_ids"]);
        assert_eq!(answer.text, case["answer"]);
    }
}

#[tokio::test]
async fn ranks_are_transformers() {
    let scores = json("llm/scores.json");
    // One at a time, and all together.
    for num_beams in [None, Some(4)] {
        let options = ModelOptions {
            num_beams,
            ..options()
        };
        let model = Model::open_with(bundle(), options).await.unwrap();
        for case in scores["cases"].as_array().unwrap().iter().take(8) {
            let request = Request::raw(case["prompt"].as_str().unwrap())
                .picture(picture(case["picture"].as_str().unwrap()));
            let answers: Vec<&Value> = (case["answers"].as_array().unwrap().iter())
                .filter(|answer| answer["text"].is_string())
                .collect();
            let texts = answers.iter().map(|a| a["text"].as_str().unwrap());
            let ranked = model.rank(request, texts).await.unwrap();
            assert!(ranked.is_sorted_by(|a, b| a.logprob >= b.logprob));
            for candidate in ranked {
                let answer = answers[candidate.index];
                assert_eq!(candidate.text, answer["text"]);
                let logprobs = answer["logprobs"].as_array().unwrap();
                assert_eq!(candidate.tokens, logprobs.len());
                let sum: f64 = logprobs.iter().map(|p| p.as_f64().unwrap()).sum();
                assert!(
                    (candidate.logprob - sum).abs() < 5e-3,
                    "{candidate:?} {sum}"
                );
            }
        }
    }
}

/// A request whose answer takes its time.
fn long() -> Request {
    Request::raw("a photo of")
        .picture(picture("ramp"))
        .generation(Generation {
            max_tokens: Some(MANY_TOKENS),
            min_tokens: Some(MANY_TOKENS),
            ..Generation::default()
        })
}

#[tokio::test]
async fn what_is_dropped_makes_way() {
    let model = Model::open_with(bundle(), options()).await.unwrap();
    let long = long();
    for _ in 0..100 {
        let mut stream = model.stream(long.clone()).await.unwrap();
        stream.next().await.unwrap().unwrap();
    }
    let answer = model.answer(long).await.unwrap();
    assert_eq!(answer.usage.completion_tokens, MANY_TOKENS);
}

#[tokio::test]
async fn a_stream_outlives_its_model_and_leaves_room_for_others() {
    let model = Model::open(bundle()).await.unwrap();
    let long = long();
    let mut unread = model.stream(long.clone()).await.unwrap();
    unread.next().await.unwrap().unwrap();
    let other = model.answer(long).await.unwrap();
    assert_eq!(other.usage.completion_tokens, MANY_TOKENS);
    drop(model);
    let answer = unread.finish().await.unwrap();
    assert_eq!(answer.usage.completion_tokens, MANY_TOKENS);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let error = Model::open(golden("llm")).await.unwrap_err();
    assert!(error.to_string().contains("not a bundle"), "{error}");
    let error = Picture::open(golden("llm/none.png")).unwrap_err();
    assert!(error.to_string().contains("none.png"), "{error}");

    let model = Model::open_with(bundle(), options()).await.unwrap();
    let broken = Picture::from(b"no picture".to_vec());
    assert_eq!(broken.check().unwrap_err().kind(), ErrorKind::InvalidImage);
    for (request, kind) in [
        (Request::new().picture(broken), ErrorKind::InvalidImage),
        (
            Request::new().picture(picture("ramp")).text(" "),
            ErrorKind::InvalidRequest,
        ),
        (
            Request::raw("a ".repeat(1000)),
            ErrorKind::ContextLengthExceeded,
        ),
    ] {
        assert_eq!(model.answer(request).await.unwrap_err().kind(), kind);
    }
    let request = Request::raw("a").picture(picture("ramp"));
    for answers in [vec![], vec!["yes", " "]] {
        let error = model.rank(request.clone(), answers).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    }
    let error = model.rank(request, ["a ".repeat(300)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextLengthExceeded, "{error}");
}
