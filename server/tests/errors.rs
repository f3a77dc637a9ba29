//! Every class of failure: its status, its words, its field.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bridge::event::Event;
use common::*;
use proptest::prelude::*;
use qformer::image::ImageError;
use serde_json::{Value, json};
use server::ServeOptions;
use tokio::sync::mpsc::channel;
use tower::ServiceExt;

fn message(message: Value) -> Value {
    json!({"messages": [message]})
}

fn content(content: Value) -> Value {
    message(json!({"role": "user", "content": content}))
}

fn image(url: &str) -> Value {
    content(json!([{"type": "image_url", "image_url": {"url": url}}]))
}

/// One snapshot of all that is refused before the model is asked: `field: status code param message`.
#[tokio::test]
async fn requests_are_refused_by_field() {
    let cases = [
        json!({"model": null}),
        json!({"model": 3}),
        json!({"model": "gpt-5"}),
        json!({"messages": null}),
        json!({"messages": "Hi"}),
        json!({"messages": []}),
        json!({"messages": [123]}),
        json!({"messages": [{}]}),
        message(json!({"role": 123, "content": "Hi"})),
        message(json!({"role": "robot", "content": "Hi"})),
        message(json!({"role": "tool", "content": "Hi", "tool_call_id": "1"})),
        message(json!({"role": "function", "content": "Hi", "name": "f"})),
        message(json!({"role": "user"})),
        message(json!({"role": "user", "content": null})),
        message(json!({"role": "user", "content": 123})),
        message(json!({"role": "user", "content": "Hi", "name": "Ann"})),
        message(json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]})),
        message(json!({"role": "user", "content": "Hi", "cache": true})),
        message(json!({"role": "system", "content": [picture()]})),
        content(json!([])),
        content(json!([{"text": "Hi"}])),
        content(json!([{"type": "text"}])),
        content(json!([{"type": "text", "text": ["Hi"]}])),
        content(json!([{"type": "input_audio", "input_audio": {}}])),
        content(json!([{"type": "painting"}])),
        content(json!([{"type": "image_url"}])),
        content(json!([{"type": "image_url", "image_url": {}}])),
        content(json!([{"type": "image_url", "image_url": {"url": "data:,", "detail": "huge"}}])),
        image("https://example.com/dog.png"),
        image("HTTP://169.254.169.254/"),
        image("ftp://example.com/dog.png"),
        image("file:///etc/passwd"),
        image("dog.png"),
        image("data:image/png;base64"),
        image("data:image/png,iVBORw"),
        image("data:image/png;base64,*secret*"),
        image("data:image/png;base64,"),
        json!({"temperature": "hot"}),
        json!({"temperature": 2.1}),
        json!({"temperature": -0.1}),
        json!({"top_p": 1.01}),
        json!({"top_k": -2}),
        json!({"top_k": 1.5}),
        json!({"min_p": -1}),
        json!({"frequency_penalty": 3}),
        json!({"presence_penalty": -3}),
        json!({"repeat_penalty": 0}),
        json!({"repeat_penalty": 1.1, "repetition_penalty": 1.2}),
        json!({"seed": 1.5}),
        json!({"max_tokens": 0}),
        json!({"max_completion_tokens": -1}),
        json!({"max_tokens": "9"}),
        json!({"stop": 3}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": [3]}),
        json!({"stop": ""}),
        json!({"stream": "yes"}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"stream": true, "stream_options": {"include_usage": 1}}),
        json!({"stream": true, "stream_options": {"chunks": 1}}),
        json!({"n": 0}),
        json!({"n": 129}),
        json!({"n": 3, "num_beams": 2, "temperature": 0}),
        json!({"logprobs": true, "num_beams": 2, "temperature": 0}),
        json!({"logprobs": 3}),
        json!({"top_logprobs": 3}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"logit_bias": {"50256": -101}}),
        json!({"logit_bias": {"word": 1}}),
        json!({"logit_bias": {"-1": 1}}),
        json!({"logit_bias": {"1": "1"}}),
        json!({"logit_bias": [1]}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tool_choice": "required"}),
        json!({"functions": [{"name": "f"}]}),
        json!({"function_call": {"name": "f"}}),
        json!({"response_format": {"type": "json_object"}, "num_beams": 2, "temperature": 0}),
        json!({"response_format": {"type": "xml"}}),
        json!({"response_format": {"type": "json_schema"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": true}}}),
        json!({"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}),
        json!({"response_format": "text"}),
        json!({"modalities": ["text", "audio"]}),
        json!({"audio": {"voice": "a"}}),
        json!({"prediction": {"type": "content"}}),
        json!({"web_search_options": {}}),
        json!({"best_of": 3}),
    ];
    let backend = || fake(|_| panic!("the model was asked"));
    let mut refusals = Vec::new();
    for case in cases.map(sorted) {
        let answer = ask(backend(), case.clone()).await;
        let error = answer.error();
        assert_eq!(error["type"], "invalid_request_error", "{case}");
        assert_eq!(error.as_object().unwrap().len(), 4, "{case}");
        let [code, param, message] =
            ["code", "param", "message"].map(|key| error[key].as_str().unwrap());
        assert!(!message.contains("secret"));
        refusals.push(format!(
            "{case}\n    {} {code} [{param}] {message}",
            answer.status.as_u16()
        ));
    }
    insta::assert_snapshot!("refusals", refusals.join("\n"));
}

/// The answer to a request, with what its error body says.
async fn told(backend: Fake, options: ServeOptions, request: Request<Body>) -> (u16, Value) {
    let answer = send(router(backend, options), request).await;
    (answer.status.as_u16(), answer.json())
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_same_shape() {
    let plain = |path: &str, method: &str, body: &str| {
        told(
            script(dog),
            ServeOptions::default(),
            request(method, path, body.to_owned()),
        )
    };
    let chat_path = "/v1/chat/completions";
    let mut untyped = post(&chat(json!({})));
    untyped.headers_mut().remove("content-type");
    let mut form = post(&chat(json!({})));
    form.headers_mut().insert(
        "content-type",
        "application/x-www-form-urlencoded".parse().unwrap(),
    );
    let answers = json!({
        "no such path": plain("/v1/images/generations", "POST", "{}").await,
        "no such method": plain(chat_path, "GET", "").await,
        "no JSON": plain(chat_path, "POST", "{\"model\": }").await,
        "no object": plain(chat_path, "POST", "[1]").await,
        "no body": plain(chat_path, "POST", "").await,
        "no type": told(script(dog), ServeOptions::default(), untyped).await,
        "form": told(script(dog), ServeOptions::default(), form).await,
    });
    insta::assert_json_snapshot!("no requests", sorted(answers));
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let options = || ServeOptions {
        max_body_bytes: 100,
        ..ServeOptions::default()
    };
    let body = "x".repeat(101);
    // A length told in advance is believed before the body comes.
    let never = futures_util::stream::pending::<std::io::Result<Vec<u8>>>();
    let mut announced = request("POST", "/v1/chat/completions", Body::from_stream(never));
    announced
        .headers_mut()
        .insert("content-length", "101".parse().unwrap());
    let (status, error) = told(script(dog), options(), announced).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (413, &json!("body_too_large"))
    );
    let (status, error) = told(
        script(dog),
        options(),
        request("POST", "/v1/chat/completions", body),
    )
    .await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (413, &json!("body_too_large"))
    );
    let fits = request("POST", "/v1/chat/completions", "x".repeat(100));
    assert_eq!(told(script(dog), options(), fits).await.0, 400);
}

#[tokio::test]
async fn large_and_many_pictures_are_refused() {
    let bytes = PNG.len() / 4 * 3 - 2;
    for (max_image_bytes, status) in [(bytes, 200), (bytes - 1, 413), (10, 413)] {
        let options = ServeOptions {
            max_image_bytes,
            ..ServeOptions::default()
        };
        let answer = send(router(script(dog), options), post(&chat(json!({})))).await;
        assert_eq!(answer.status, status, "{max_image_bytes}");
        if status == 413 {
            assert_eq!(answer.code(), "image_too_large");
            assert_eq!(answer.param(), "messages[0].content[0].image_url.url");
        }
    }
    let options = ServeOptions {
        max_images: 1,
        ..ServeOptions::default()
    };
    let two = chat(content(json!([picture(), picture()])));
    let answer = send(router(script(dog), options), post(&two)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.param()),
        (400, json!("messages"))
    );
}

fn image_error(error: ImageError) -> bridge::Error {
    bridge::Error::Vision(qformer::Error::Image(error))
}

/// What the model refuses: at once, or by its first event; streamed or not, it is a plain answer.
#[tokio::test]
async fn beams_that_cannot_be_name_their_field() {
    for (body, param) in [
        (json!({"num_beams": 0}), "num_beams"),
        (json!({"num_beams": 257}), "num_beams"),
        (json!({"num_beams": 2.5}), "num_beams"),
        (json!({"num_beams": "five"}), "num_beams"),
        (json!({"length_penalty": 11}), "length_penalty"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"num_beams": 5, "temperature": 0.5}), "temperature"),
        (
            json!({"num_beams": 2, "presence_penalty": 1}),
            "presence_penalty",
        ),
        (
            json!({"num_beams": 2, "frequency_penalty": -1}),
            "frequency_penalty",
        ),
    ] {
        let answer = ask(script(Vec::new), body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(answer.json()["error"]["param"], param, "{body}");
    }
    let refused = |_| {
        Err(bridge::Error::TooManyBeams {
            num_beams: 5,
            limit: 4,
        })
    };
    let answer = ask(fake(refused), json!({"num_beams": 5})).await;
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "num_beams");
    assert!(error["message"].as_str().unwrap().contains('4'), "{error}");
}

#[tokio::test]
async fn the_models_errors_have_a_status() {
    let broken = || {
        image_error(ImageError::Broken {
            format: "PNG",
            source: "chunk at 0x7ffc".into(),
        })
    };
    type MakeError = fn() -> bridge::Error;
    let errors: [(&str, MakeError); 6] = [
        ("context", || bridge::Error::ContextLengthExceeded {
            n_prompt_tokens: 5000,
            n_ctx: 4096,
        }),
        ("queue", || bridge::Error::QueueFull { limit: 64 }),
        ("prompt", || {
            bridge::Error::Prompt(prompts::Error::NoSystemTurn)
        }),
        ("internal", || bridge::Error::Decode {
            reason: "ggml at 0x7ffc".into(),
        }),
        ("large image", || {
            image_error(ImageError::TooManyBytes { bytes: 9, limit: 8 })
        }),
        ("broken image", broken),
    ];
    let mut answers = serde_json::Map::new();
    for (name, error) in errors {
        let at_once = ask(fake(move |_| Err(error())), json!({})).await;
        assert_eq!(at_once.headers.contains_key("retry-after"), name == "queue");
        for stream in [false, true] {
            let by_event = script(move || vec![Event::Error(error())]);
            let by_event = ask(by_event, json!({"stream": stream})).await;
            assert_eq!(
                (by_event.status, by_event.json()),
                (at_once.status, at_once.json()),
                "{name}"
            );
        }
        assert!(!at_once.json().to_string().contains("0x7ffc"), "{name}");
        answers.insert(
            name.to_owned(),
            json!([at_once.status.as_u16(), at_once.json()]),
        );
    }
    insta::assert_json_snapshot!("model errors", sorted(answers.into()));
}

#[tokio::test]
async fn an_error_within_a_stream_is_an_event() {
    let failing = || {
        let reason = "ggml".to_owned();
        vec![token("A"), Event::Error(bridge::Error::Decode { reason })]
    };
    let events = ask(script(failing), json!({"stream": true})).await.events();
    assert_eq!(events.len(), 4);
    assert_eq!(events[1]["choices"][0]["delta"], json!({"content": "A"}));
    assert_eq!(events[2]["error"]["code"], "internal_error");
    assert_eq!(events[3], "[DONE]");
    // The model goes away without a word.
    let events = ask(script(|| vec![token("A")]), json!({"stream": true}))
        .await
        .events();
    assert_eq!(events[2]["error"]["code"], "internal_error");
    let whole = ask(script(|| vec![token("A")]), json!({})).await;
    assert_eq!(
        (whole.status.as_u16(), whole.code().as_str()),
        (500, "internal_error")
    );
    // Nor does a panic reach the client.
    let whole = ask(fake(|_| panic!("a bug")), json!({})).await;
    assert_eq!(
        (whole.status.as_u16(), whole.code().as_str()),
        (500, "internal_error")
    );
}

#[tokio::test]
async fn answers_have_a_deadline() {
    let options = || ServeOptions {
        request_timeout: Duration::from_millis(30),
        ..ServeOptions::default()
    };
    let (silent, _senders) = hanging();
    let answer = send(
        router(silent, options()),
        post(&chat(json!({"stream": true}))),
    )
    .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (504, "timeout")
    );
    assert_eq!(answer.headers["x-should-retry"], "false");

    let slow = fake(|_| {
        let (sender, receiver) = channel(64);
        sender.try_send(token("A")).unwrap();
        std::mem::forget(sender);
        Ok(receiver)
    });
    let events = send(
        router(slow, options()),
        post(&chat(json!({"stream": true}))),
    )
    .await
    .events();
    assert_eq!(events[2]["error"]["code"], "timeout");
    assert_eq!(events[3], "[DONE]");

    let (silent, _senders) = hanging();
    let slow_start = ServeOptions {
        first_token_timeout: Duration::from_millis(30),
        ..ServeOptions::default()
    };
    let answer = send(router(silent, slow_start), post(&chat(json!({})))).await;
    assert_eq!(answer.status, 504);
    assert!(
        answer.error()["message"]
            .as_str()
            .unwrap()
            .contains("first token")
    );

    let never = Body::from_stream(futures_util::stream::pending::<
        Result<Vec<u8>, std::io::Error>,
    >());
    let slow_body = ServeOptions {
        body_timeout: Duration::from_millis(30),
        ..ServeOptions::default()
    };
    let answer = send(
        router(script(dog), slow_body),
        request("POST", "/v1/chat/completions", never),
    )
    .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (408, "body_timeout")
    );
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_before_they_are_read() {
    let (backend, senders) = hanging();
    let options = ServeOptions {
        max_requests: 1,
        ..ServeOptions::default()
    };
    let router = router(backend, options);
    let first = tokio::spawn(router.clone().oneshot(post(&chat(json!({"stream": true})))));
    let sender = taken(&senders).await;
    // Its body would never end.
    let never = Body::from_stream(futures_util::stream::pending::<
        Result<Vec<u8>, std::io::Error>,
    >());
    let second = send(
        router.clone(),
        request("POST", "/v1/chat/completions", never),
    )
    .await;
    assert_eq!(
        (second.status.as_u16(), second.code().as_str()),
        (429, "queue_full")
    );
    assert_eq!(second.headers["retry-after"], "1");
    assert_eq!(
        send(router.clone(), request("GET", "/health", Body::empty()))
            .await
            .status,
        200
    );

    // The first one's place is free once its answer is read, not before.
    for event in dog() {
        sender.try_send(event).unwrap();
    }
    let first = first.await.unwrap().unwrap();
    assert_eq!(
        send(router.clone(), post(&chat(json!({})))).await.status,
        429
    );
    drop(first);
    let third = tokio::spawn(router.oneshot(post(&chat(json!({})))));
    let sender = taken(&senders).await;
    for event in dog() {
        sender.try_send(event).unwrap();
    }
    assert_eq!(third.await.unwrap().unwrap().status(), 200);
}

/// Work that cannot be stopped keeps its place although nobody waits for it: leaving early must not make room.
#[tokio::test]
async fn a_place_is_taken_until_its_work_ends() {
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let backend = fake(move |_| {
        begin.send(()).unwrap();
        blocked.lock().unwrap().recv().unwrap();
        Err(bridge::Error::Stopped)
    });
    let options = ServeOptions {
        max_requests: 1,
        ..ServeOptions::default()
    };
    let router = router(backend, options);
    let first = tokio::spawn(router.clone().oneshot(post(&chat(json!({})))));
    begun.recv().await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let ask = async || send(router.clone(), post(&chat(json!({})))).await.status;
    assert_eq!(ask().await, 429);
    release.send(()).unwrap();
    release.send(()).unwrap();
    let started = std::time::Instant::now();
    let status = loop {
        match ask().await.as_u16() {
            429 if started.elapsed() < Duration::from_secs(60) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            other => break other,
        }
    };
    assert_eq!(status, 500);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3.0..3.0f64).prop_map(Value::from),
        proptest::sample::select(vec![
            "user",
            "assistant",
            "text",
            "image_url",
            "Hi",
            "data:;base64,aGk=",
            "data:",
            "http://a",
            "",
        ])
        .prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let names = proptest::sample::select(vec![
            "role",
            "content",
            "type",
            "text",
            "image_url",
            "url",
            "detail",
            "x",
        ]);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(names.prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_body_brings_the_server_down(
        value in any_json(),
        field in proptest::sample::select(vec![
            "messages", "model", "stop", "stream", "stream_options", "temperature", "top_k", "seed", "max_tokens",
            "response_format", "modalities", "tools", "logit_bias", "n", "logprobs", "user",
        ]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(ask(script(dog), json!({field: value})));
        prop_assert!([200, 400, 404].contains(&answer.status.as_u16()), "{}", answer.status);
    }
}
