//! Answers, whole and streamed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use bridge::constraint::Format;
use bridge::event::{Event, FinishReason, Summary, TokenLogprob, TokenLogprobs};
use bridge::model::Prompt;
use common::*;
use prompts::{Message, Part, Role};
use serde_json::{Value, json};
use server::{Abilities, ServeOptions};
use tower::ServiceExt;

#[tokio::test]
async fn a_whole_answer() {
    let (backend, seen) = recorder();
    let answer = ask(backend, json!({})).await;
    assert_eq!(answer.status, 200);
    insta::assert_json_snapshot!("whole", settled(answer.json()));

    let seen = seen.lock().unwrap();
    let Prompt::Chat(messages) = &seen[0].prompt else {
        panic!()
    };
    let parts = vec![Part::Image(0), Part::Text("What is it?".into())];
    assert_eq!(
        messages,
        &[Message {
            role: Role::User,
            parts
        }]
    );
    assert_eq!(seen[0].images.len(), 1);
    assert!(seen[0].images[0].starts_with(b"\x89PNG"));
    assert_eq!(seen[0].max_tokens, None);
    assert_eq!(seen[0].sampling.temperature, 0.25);
    assert!(seen[0].stop.is_empty());
}

#[tokio::test]
async fn a_stream() {
    let answer = ask(script(dog), json!({"stream": true})).await;
    assert_eq!(answer.status, 200);
    let events: Vec<Value> = answer.events();
    assert!(
        events
            .windows(2)
            .all(|two| two[1] == "[DONE]" || two[0]["id"] == two[1]["id"])
    );
    let events: Vec<Value> = events.into_iter().map(settled).collect();
    insta::assert_json_snapshot!("stream", events);
}

#[tokio::test]
async fn a_stream_with_usage() {
    let options = json!({"stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}});
    let events: Vec<Value> = ask(script(dog), options)
        .await
        .events()
        .into_iter()
        .map(settled)
        .collect();
    insta::assert_json_snapshot!("stream with usage", events);
}

/// "A", and a token that begins a character and is not whole text.
fn with_logprobs() -> Vec<Event> {
    let of = |id, bytes: &[u8], logprob| TokenLogprob {
        id,
        bytes: bytes.to_vec(),
        text: String::from_utf8_lossy(bytes).into_owned(),
        logprob,
    };
    let told = |token: TokenLogprob, top| TokenLogprobs { token, top };
    let first = told(
        of(7, b"A", -0.5),
        vec![of(7, b"A", -0.5), of(8, b"B", -1.5)],
    );
    let last = told(of(9, b"\xe2", f32::NEG_INFINITY), vec![]);
    let Event::Done(summary) = done("\u{fffd}", FinishReason::Length) else {
        panic!()
    };
    vec![
        Event::Token {
            choice: 0,
            id: 7,
            text: "A".into(),
            logprobs: vec![first],
        },
        Event::Done(Summary {
            mean_logprob: None,
            logprobs: vec![last],
            ..summary
        }),
    ]
}

#[tokio::test]
async fn logprobs_have_openais_shapes() {
    let content = json!([
        {"token": "A", "bytes": [65], "logprob": -0.5, "top_logprobs": [
            {"token": "A", "bytes": [65], "logprob": -0.5},
            {"token": "B", "bytes": [66], "logprob": -1.5},
        ]},
        {"token": "\u{fffd}", "bytes": [226], "logprob": -9999.0, "top_logprobs": []},
    ]);
    let asked = json!({"logprobs": true, "top_logprobs": 2});
    let whole = ask(script(with_logprobs), asked.clone()).await.json();
    let expected = json!({"content": content, "refusal": null});
    assert_eq!(whole["choices"][0]["logprobs"], expected);
    let mut asked = asked;
    asked["stream"] = json!(true);
    let events = ask(script(with_logprobs), asked).await.events();
    let told: Vec<&Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(json!(told), content);
    // Nobody asked.
    let whole = ask(script(with_logprobs), json!({})).await.json();
    assert_eq!(whole["choices"][0]["logprobs"], Value::Null);

    let text = json!({"model": "demo", "prompt": "a", "logprobs": 2});
    let router = router(script(with_logprobs), ServeOptions::default());
    let whole = send(router, request("POST", "/v1/completions", text.to_string())).await;
    assert_eq!(
        whole.json()["choices"][0]["logprobs"],
        json!({
            "tokens": ["A", "\u{fffd}"],
            "token_logprobs": [-0.5, -9999.0],
            "top_logprobs": [{"A": -0.5, "B": -1.5}, {}],
            "text_offset": [0, 1],
        })
    );
}

#[tokio::test]
async fn choices_are_told_apart() {
    let whole = ask(script(dog), json!({"n": 3})).await.json();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (n, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], n);
        assert_eq!(choice["message"]["content"], "A dog.");
        assert_eq!(choice["finish_reason"], "stop");
    }
    // The prompt once, the tokens of all.
    assert_eq!(whole["usage"]["prompt_tokens"], 45);
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    assert_eq!(whole["usage"]["total_tokens"], 57);
    let options = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let events = ask(script(dog), options).await.events();
    for n in 0..2 {
        let of_choice: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0])
            .filter(|choice| choice["index"] == n)
            .collect();
        assert_eq!(of_choice[0]["delta"]["role"], "assistant");
        let text = of_choice
            .iter()
            .filter_map(|c| c["delta"]["content"].as_str());
        assert_eq!(text.collect::<String>(), "A dog.");
        let ends = of_choice.iter().filter(|c| !c["finish_reason"].is_null());
        assert_eq!(ends.count(), 1);
    }
    let usage: Vec<&Value> = events
        .iter()
        .filter(|event| event["usage"].is_object())
        .collect();
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0]["usage"]["completion_tokens"], 8);
    assert_eq!(events.last(), Some(&json!("[DONE]")));
}

#[tokio::test]
async fn forms_biases_and_logprobs_are_passed_on() {
    let (backend, seen) = recorder();
    let router = router(backend, ServeOptions::default());
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for body in [
        json!({"logit_bias": {"7": -100, "9": 0.5}, "logprobs": true, "top_logprobs": 4, "cache_prompt": false}),
        json!({"response_format": {"type": "json_object"}, "logprobs": true}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a-1", "strict": true, "schema": schema}}}),
        json!({"response_format": {"type": "text"}}),
    ] {
        let answer = send(router.clone(), post(&chat(body))).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
    }
    let seen = seen.lock().unwrap();
    let mut bias = seen[0].logit_bias.clone();
    bias.sort_by_key(|&(id, _)| id);
    assert_eq!(bias, [(7, -100.0), (9, 0.5)]);
    assert_eq!(
        (seen[0].top_logprobs, seen[0].cache_prompt),
        (Some(4), false)
    );
    assert_eq!(seen[1].format, Some(Format::JsonObject));
    assert_eq!(
        (seen[1].top_logprobs, seen[1].cache_prompt),
        (Some(0), true)
    );
    assert_eq!(seen[2].format, Some(Format::JsonSchema(schema)));
    assert_eq!((&seen[3].format, seen[3].top_logprobs), (&None, None));
}

#[tokio::test]
async fn what_only_the_model_knows_is_blamed_on_its_field() {
    let refusals = [
        (bridge::Error::TooManyChoices { n: 9, limit: 4 }, "n"),
        (
            bridge::Error::TooManyBeams {
                num_beams: 9,
                limit: 4,
            },
            "num_beams",
        ),
        (
            bridge::Error::LogitBias {
                reason: "token 9".into(),
            },
            "logit_bias",
        ),
        (
            bridge::Error::Schema {
                reason: "no type".into(),
            },
            "response_format.json_schema.schema",
        ),
    ];
    for (error, param) in refusals {
        let error = Mutex::new(Some(error));
        let backend = fake(move |_| Err(error.lock().unwrap().take().unwrap()));
        let answer = ask(backend, json!({})).await;
        assert_eq!(
            (answer.status.as_u16(), answer.param()),
            (400, json!(param))
        );
    }
}

#[tokio::test]
async fn the_limit_is_told() {
    let events = || vec![token("A"), done("", FinishReason::Length)];
    let whole = ask(script(events), json!({})).await.json();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let streamed = ask(script(events), json!({"stream": true})).await.events();
    assert_eq!(streamed[2]["choices"][0]["finish_reason"], "length");
    assert_eq!(streamed[2]["choices"][0]["delta"], json!({}));
    assert_eq!(streamed.len(), 4);
}

#[tokio::test]
async fn what_the_model_can_do_is_passed_on() {
    let (backend, seen) = recorder();
    let router = router(backend, ServeOptions::default());
    let all = json!({
        "max_tokens": 9, "max_completion_tokens": 5, "temperature": 1.5, "top_p": 0.5, "top_k": 40, "min_p": 0.05,
        "repeat_penalty": 1.1, "frequency_penalty": -1, "presence_penalty": 2, "seed": -1, "stop": ["\n", "###"],
    });
    assert_eq!(send(router.clone(), post(&chat(all))).await.status, 200);
    let other = json!({"max_tokens": 9, "repetition_penalty": 1.2, "top_k": -1, "stop": "."});
    assert_eq!(send(router, post(&chat(other))).await.status, 200);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].max_tokens, Some(5));
    assert_eq!(seen[0].stop, ["\n", "###"]);
    let sampling = seen[0].sampling;
    let penalties = (
        sampling.repetition_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    );
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.min_p),
        (1.5, 0.5, 0.05)
    );
    assert_eq!(
        (penalties, sampling.top_k, sampling.seed),
        ((1.1, -1.0, 2.0), 40, Some(u64::MAX))
    );
    assert_eq!(seen[1].max_tokens, Some(9));
    assert_eq!(seen[1].stop, ["."]);
    assert_eq!(
        (seen[1].sampling.repetition_penalty, seen[1].sampling.top_k),
        (1.2, 0)
    );
}

#[tokio::test]
async fn beams_and_their_fields_are_passed_on() {
    let (backend, seen) = recorder();
    let router = router(backend, ServeOptions::default());
    for body in [
        json!({"num_beams": 5, "length_penalty": -1, "min_tokens": 8, "repetition_penalty": 1.5}),
        json!({"num_beams": 1, "min_tokens": 0, "temperature": 0.5}),
        json!({"num_beams": null, "length_penalty": null}),
    ] {
        assert_eq!(send(router.clone(), post(&chat(body))).await.status, 200);
    }
    let seen = seen.lock().unwrap();
    let fields = |request: &bridge::model::Request| {
        let sampling = request.sampling;
        (
            (sampling.num_beams, sampling.length_penalty),
            (sampling.min_tokens, sampling.repetition_penalty),
            sampling.temperature,
        )
    };
    // Beams named by the request switch off the bundle's temperature of 0.25.
    assert_eq!(fields(&seen[0]), ((5, -1.0), (8, 1.5), 0.0));
    assert_eq!(fields(&seen[1]), ((1, 1.0), (0, 1.0), 0.5));
    assert_eq!(fields(&seen[2]), ((1, 1.0), (0, 1.0), 0.25));
}

#[tokio::test]
async fn fields_that_ask_for_nothing_are_taken() {
    let answer = ask(
        script(dog),
        json!({
            "user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}, "store": true,
            "service_tier": "auto", "reasoning_effort": "low", "verbosity": "low", "modalities": ["text"], "n": 1,
            "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "functions": [], "function_call": "auto",
            "logprobs": false, "top_logprobs": null, "logit_bias": {}, "response_format": {"type": "text"}, "audio": null,
            "stop": null, "stream": null, "stream_options": null, "temperature": null, "no_such_field": null,
        }),
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.json());
}

#[tokio::test]
async fn roles_and_parts_keep_their_order() {
    let (backend, seen) = recorder();
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Compare "}, picture(), {"type": "text", "text": " with "}, picture()]},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": []},
        {"role": "user", "content": "Again."},
    ]);
    assert_eq!(
        ask(backend, json!({"messages": messages})).await.status,
        200
    );
    let seen = seen.lock().unwrap();
    let Prompt::Chat(messages) = &seen[0].prompt else {
        panic!()
    };
    let text = |text: &str| Part::Text(text.into());
    let expected = [
        (Role::System, vec![text("Be brief.")]),
        (
            Role::User,
            vec![
                text("Compare "),
                Part::Image(0),
                text(" with "),
                Part::Image(1),
            ],
        ),
        (Role::Assistant, vec![text("")]),
        (Role::User, vec![text("Again.")]),
    ];
    assert_eq!(
        messages,
        &expected.map(|(role, parts)| Message { role, parts })
    );
    assert_eq!(seen[0].images.len(), 2);
}

#[tokio::test]
async fn pictures_come_in_many_spellings() {
    let unpadded = PNG.trim_end_matches('=');
    let broken_lines = PNG
        .as_bytes()
        .chunks(40)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect::<Vec<_>>()
        .join("\r\n");
    for url in [
        json!({"url": format!("DATA:image/png;BASE64,{PNG}"), "detail": "high"}),
        json!({"url": format!("data:;base64,{PNG}"), "detail": null}),
        json!({"url": format!("data:text/html;charset=utf-8;base64,{unpadded}")}),
        json!({"url": format!("data:image/png;base64,{broken_lines}")}),
        json!(format!("data:image/png;base64,{PNG}")),
    ] {
        let (backend, seen) = recorder();
        let content = json!([{"type": "image_url", "image_url": url}]);
        let answer = ask(
            backend,
            json!({"messages": [{"role": "user", "content": content}]}),
        )
        .await;
        assert_eq!(answer.status, 200, "{url}");
        let seen = seen.lock().unwrap();
        assert!(
            seen[0].images[0].starts_with(b"\x89PNG")
                && seen[0].images[0].ends_with(b"IEND\xaeB`\x82"),
            "{url}"
        );
    }
}

#[tokio::test]
async fn requests_have_ids() {
    let router = router(script(dog), ServeOptions::default());
    let mut request = post(&chat(json!({})));
    request
        .headers_mut()
        .insert("x-request-id", "mine".parse().unwrap());
    assert_eq!(
        send(router.clone(), request).await.headers["x-request-id"],
        "mine"
    );
    let answer = send(router.clone(), post(&chat(json!({"n": 0})))).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.headers["x-request-id"].len(), 36);
}

#[tokio::test]
async fn models_are_listed() {
    let options = ServeOptions {
        aliases: [("gpt/4".to_owned(), "demo".to_owned())].into(),
        ..ServeOptions::default()
    };
    let backend = script(dog).with_abilities(Abilities::LANGUAGE_MODEL);
    let router = router(backend, options);
    let get = |path: &str| send(router.clone(), request("GET", path, Body::empty()));
    let list = get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let model = |id: &str| json!({"id": id, "object": "model", "created": list["data"][0]["created"], "owned_by": "qbridge", "status": "loaded", "capabilities": ["chat", "completion"]});
    assert_eq!(list["data"], json!([model("demo"), model("gpt/4")]));
    assert_eq!(get("/v1/models/demo").await.json(), model("demo"));
    assert_eq!(get("/v1/models/gpt/4").await.json(), model("gpt/4"));
    let missing = get("/v1/models/gpt-5").await;
    assert_eq!(
        (missing.status.as_u16(), missing.code().as_str()),
        (404, "model_not_found")
    );
    assert_eq!(get("/health").await.json(), json!({"status": "ok"}));
    let alias = send(router.clone(), post(&chat(json!({"model": "gpt/4"})))).await;
    assert_eq!(alias.json()["model"], "demo");
}

/// Waits for the other end of a channel to be dropped.
async fn closed(sender: &tokio::sync::mpsc::Sender<Event>) {
    tokio::time::timeout(Duration::from_secs(5), sender.closed())
        .await
        .expect("the work goes on");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream() {
    let (backend, senders) = hanging();
    let router = router(backend, ServeOptions::default());
    let asked = tokio::spawn(router.oneshot(post(&chat(json!({"stream": true})))));
    let sender = taken(&senders).await;
    sender.send(token("A")).await.unwrap();
    let response = asked.await.unwrap().unwrap();
    assert!(!sender.is_closed());
    drop(response);
    closed(&sender).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_answer() {
    let (backend, senders) = hanging();
    let router = router(backend, ServeOptions::default());
    let asked = tokio::spawn(router.oneshot(post(&chat(json!({})))));
    let sender = taken(&senders).await;
    sender.send(token("A")).await.unwrap();
    asked.abort();
    closed(&sender).await;
}
