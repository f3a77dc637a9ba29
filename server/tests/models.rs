//! Several models in one server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bridge::event::FinishReason;
use common::*;
use serde_json::{Value, json};
use server::{ServeOptions, Source};

/// Says its own name, and counts how often it was loaded.
fn named(name: &'static str, loads: &Arc<AtomicUsize>) -> Source<Fake> {
    let loads = loads.clone();
    Source::new(name, move || {
        loads.fetch_add(1, Ordering::Relaxed);
        Ok(script(move || {
            vec![token(name), done("", FinishReason::Stop)]
        }))
    })
}

fn two() -> (Router, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let options = ServeOptions {
        aliases: [("gpt-4o".to_owned(), "large".to_owned())].into(),
        ..ServeOptions::default()
    };
    let models = vec![named("small", &loads), named("large", &loads)];
    (server::router(models, options).unwrap(), loads)
}

async fn ask(router: &Router, model: &str) -> Answer {
    send(router.clone(), post(&chat(json!({"model": model})))).await
}

async fn change(router: &Router, what: &str, model: &str) -> Answer {
    let body = json!({"model": model}).to_string();
    send(
        router.clone(),
        request("POST", &format!("/models/{what}"), body),
    )
    .await
}

fn text(answer: &Answer) -> Value {
    answer.json()["choices"][0]["message"]["content"].clone()
}

#[tokio::test]
async fn a_request_is_answered_by_the_model_it_names() {
    let (router, _) = two();
    for (model, own) in [("small", "small"), ("large", "large"), ("gpt-4o", "large")] {
        let answer = ask(&router, model).await;
        assert_eq!(text(&answer), own);
        assert_eq!(answer.json()["model"], own);
    }
    let answer = ask(&router, "medium").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (404, "model_not_found")
    );
    let told = answer.error()["message"].as_str().unwrap().to_owned();
    assert!(told.contains(r#""small", "large", "gpt-4o""#), "{told}");
    let list = send(router, request("GET", "/v1/models", Body::empty()))
        .await
        .json();
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(ids, ["small", "large", "gpt-4o"]);
}

#[tokio::test]
async fn a_model_is_unloaded_and_loaded_again() {
    let (router, loads) = two();
    assert_eq!(loads.load(Ordering::Relaxed), 2);
    let answer = change(&router, "unload", "gpt-4o").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["status"]),
        (200, &json!("unloaded"))
    );
    assert_eq!(answer.json()["capabilities"], Value::Null);
    let answer = ask(&router, "large").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "model_not_loaded")
    );
    assert_eq!(text(&ask(&router, "small").await), "small");
    // Once more changes nothing.
    assert_eq!(change(&router, "unload", "large").await.status, 200);
    for _ in 0..2 {
        let answer = change(&router, "load", "large").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["status"]),
            (200, &json!("loaded"))
        );
    }
    assert_eq!(text(&ask(&router, "large").await), "large");
    assert_eq!(loads.load(Ordering::Relaxed), 3);
    assert_eq!(
        change(&router, "load", "medium").await.code(),
        "model_not_found"
    );
}

#[tokio::test]
async fn a_model_answers_what_it_has_before_it_goes() {
    let (backend, senders) = hanging();
    let router = router(backend, ServeOptions::default());
    let asked = tokio::spawn({
        let router = router.clone();
        async move { send(router, post(&chat(json!({})))).await }
    });
    let sender = taken(&senders).await;
    let unloading = tokio::spawn({
        let router = router.clone();
        async move { change(&router, "unload", "demo").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!unloading.is_finished());
    assert_eq!(ask(&router, "demo").await.code(), "model_not_loaded");
    for event in dog() {
        sender.send(event).await.unwrap();
    }
    assert_eq!(text(&asked.await.unwrap()), "A dog.");
    assert_eq!(unloading.await.unwrap().status, 200);
    // The fake comes but once; why is for the log.
    let answer = change(&router, "load", "demo").await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (500, "internal_error")
    );
}

#[test]
fn names_are_told_apart_before_anything_is_loaded() {
    let loads = Arc::new(AtomicUsize::new(0));
    let refused = |names: &[&'static str], aliases: &[(&str, &str)]| {
        let models = names.iter().map(|name| named(name, &loads)).collect();
        let aliases = aliases
            .iter()
            .map(|(alias, name)| ((*alias).to_owned(), (*name).to_owned()));
        let options = ServeOptions {
            aliases: aliases.collect(),
            ..ServeOptions::default()
        };
        server::router(models, options).unwrap_err().to_string()
    };
    assert!(refused(&["a", "b", "a"], &[]).contains("two models have the name \"a\""));
    assert!(refused(&["a"], &[("a", "a")]).contains("two models"));
    assert!(refused(&["a"], &[("b", "c")]).contains("\"c\", which is not served"));
    assert!(refused(&[], &[]).contains("no model"));
    assert_eq!(loads.load(Ordering::Relaxed), 0);
}
