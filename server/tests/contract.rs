//! OpenAI's reference of requests field by field: each is honoured, cannot change the answer, or is refused by its name.
//! And the shapes of what is sent back, to the key.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use axum::http::Request;
use bridge::constraint::Format;
use bridge::event::{Event, FinishReason, Timings};
use bridge::model::{self, Prompt, ToolChoice};
use common::*;
use serde_json::{Value, json};
use server::{ApiKeys, ServeOptions};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// What a value of a field does.
enum Does {
    /// Reaches the model.
    Asks(fn(&model::Request) -> bool),
    /// Shows in the answer.
    Shows(fn(&Answer) -> bool),
    /// The model is asked the same, and the answer is the same.
    Nothing,
    /// 400, with the field and this code.
    Refused(&'static str),
}

use Does::{Asks, Nothing, Refused, Shows};

const UNSUPPORTED: &str = "unsupported_parameter";

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "f"}})
}

/// Fields of both routes.
fn of_both() -> Vec<(&'static str, Value, Does)> {
    vec![
        (
            "frequency_penalty",
            json!(0.5),
            Asks(|asked| asked.sampling.frequency_penalty == 0.5),
        ),
        (
            "logit_bias",
            json!({"7": -3}),
            Asks(|asked| asked.logit_bias == [(7, -3.0)]),
        ),
        (
            "max_tokens",
            json!(3),
            Asks(|asked| asked.max_tokens == Some(3)),
        ),
        ("n", json!(2), Asks(|asked| asked.sampling.n == 2)),
        (
            "n",
            json!(2),
            Shows(|answer| answer.json()["choices"][1]["index"] == 1),
        ),
        (
            "presence_penalty",
            json!(-0.5),
            Asks(|asked| asked.sampling.presence_penalty == -0.5),
        ),
        (
            "seed",
            json!(5),
            Asks(|asked| asked.sampling.seed == Some(5)),
        ),
        ("stop", json!("a"), Asks(|asked| asked.stop == ["a"])),
        (
            "stop",
            json!(["a", "b"]),
            Asks(|asked| asked.stop == ["a", "b"]),
        ),
        (
            "stream",
            json!(true),
            Shows(|answer| answer.events().last() == Some(&json!("[DONE]"))),
        ),
        ("stream", json!(false), Nothing),
        (
            "stream_options",
            json!({"include_usage": true}),
            Refused("invalid_value"),
        ),
        (
            "temperature",
            json!(0.5),
            Asks(|asked| asked.sampling.temperature == 0.5),
        ),
        (
            "top_p",
            json!(0.5),
            Asks(|asked| asked.sampling.top_p == 0.5),
        ),
        ("user", json!("u"), Nothing),
    ]
}

fn of_chat() -> Vec<(&'static str, Value, Does)> {
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}});
    let messages =
        json!([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
    vec![
        (
            "messages",
            messages,
            Asks(|asked| matches!(&asked.prompt, Prompt::Chat(of) if of.len() == 2)),
        ),
        (
            "model",
            json!("demo"),
            Shows(|answer| answer.json()["model"] == "demo"),
        ),
        (
            "audio",
            json!({"voice": "alloy", "format": "wav"}),
            Refused(UNSUPPORTED),
        ),
        ("function_call", json!("auto"), Nothing),
        ("function_call", json!({"name": "f"}), Refused(UNSUPPORTED)),
        ("functions", json!([{"name": "f"}]), Refused(UNSUPPORTED)),
        (
            "logprobs",
            json!(true),
            Asks(|asked| asked.top_logprobs == Some(0)),
        ),
        (
            "logprobs",
            json!(true),
            Shows(|answer| answer.json()["choices"][0]["logprobs"]["content"].is_array()),
        ),
        ("logprobs", json!(false), Nothing),
        (
            "max_completion_tokens",
            json!(3),
            Asks(|asked| asked.max_tokens == Some(3)),
        ),
        ("metadata", json!({"a": "b"}), Nothing),
        ("modalities", json!(["text"]), Nothing),
        ("modalities", json!(["text", "audio"]), Refused(UNSUPPORTED)),
        ("parallel_tool_calls", json!(false), Nothing),
        (
            "prediction",
            json!({"type": "content", "content": "A"}),
            Refused(UNSUPPORTED),
        ),
        ("prompt_cache_key", json!("k"), Nothing),
        ("prompt_cache_retention", json!("24h"), Nothing),
        ("reasoning_effort", json!("low"), Nothing),
        ("response_format", json!({"type": "text"}), Nothing),
        (
            "response_format",
            json!({"type": "json_object"}),
            Asks(|asked| asked.format == Some(Format::JsonObject)),
        ),
        (
            "response_format",
            schema,
            Asks(|asked| matches!(asked.format, Some(Format::JsonSchema(_)))),
        ),
        ("safety_identifier", json!("s"), Nothing),
        (
            "service_tier",
            json!("flex"),
            Shows(|answer| answer.json()["service_tier"] == "default"),
        ),
        ("store", json!(true), Nothing),
        ("store", json!(false), Nothing),
        ("tool_choice", json!("none"), Nothing),
        ("tool_choice", json!("required"), Refused("invalid_value")),
        ("tools", json!([]), Nothing),
        (
            "tools",
            json!([tool()]),
            Asks(|asked| {
                asked
                    .tools
                    .as_ref()
                    .is_some_and(|tools| tools.choice == ToolChoice::Auto)
            }),
        ),
        ("top_logprobs", json!(2), Refused("invalid_value")),
        ("verbosity", json!("low"), Nothing),
        ("web_search_options", json!({}), Refused(UNSUPPORTED)),
    ]
}

fn of_text() -> Vec<(&'static str, Value, Does)> {
    vec![
        (
            "model",
            json!("demo"),
            Shows(|answer| answer.json()["model"] == "demo"),
        ),
        (
            "prompt",
            json!("Once"),
            Asks(|asked| matches!(&asked.prompt, Prompt::Raw(text) if text == "Once")),
        ),
        (
            "prompt",
            json!([7, 8]),
            Asks(|asked| matches!(&asked.prompt, Prompt::Tokens(ids) if *ids == [7, 8])),
        ),
        ("best_of", json!(1), Nothing),
        ("best_of", json!(2), Refused(UNSUPPORTED)),
        ("echo", json!(false), Nothing),
        ("echo", json!(true), Refused(UNSUPPORTED)),
        (
            "logprobs",
            json!(3),
            Asks(|asked| asked.top_logprobs == Some(3)),
        ),
        ("suffix", json!(""), Nothing),
        ("suffix", json!("end"), Refused(UNSUPPORTED)),
    ]
}

/// What this server has beyond OpenAI's reference, or of the other route's.
const EXTENSIONS: [&str; 9] = [
    "cache_prompt",
    "length_penalty",
    "min_p",
    "min_tokens",
    "num_beams",
    "repeat_penalty",
    "repetition_penalty",
    "timings",
    "top_k",
];

fn body(path: &str, fields: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}),
        _ => json!({"model": "demo", "prompt": "Hi"}),
    };
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// What the model is asked, if it is, and the answer.
async fn outcome(path: &str, fields: Value) -> (Option<model::Request>, Answer) {
    let (backend, seen) = echoing();
    let asked = request("POST", path, body(path, &fields).to_string());
    let answer = send(router(backend, ServeOptions::default()), asked).await;
    let asked = seen.lock().unwrap().pop();
    (asked, answer)
}

/// Answers each choice "A dog.", and keeps the requests.
fn echoing() -> (Fake, std::sync::Arc<std::sync::Mutex<Vec<model::Request>>>) {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = seen.clone();
    let dogs = script(dog);
    let backend = fake(move |request| {
        kept.lock().unwrap().push(request.clone());
        server::Backend::submit(&dogs, request)
    });
    (backend, seen)
}

/// An answer without what is new in each.
fn constant(answer: &Answer) -> Value {
    let mut value = answer.json();
    value["id"] = json!(null);
    value["created"] = json!(null);
    value
}

#[tokio::test]
async fn every_field_of_openais_reference_does_what_it_says_or_is_refused() {
    for (path, fields) in [(CHAT, of_chat()), (TEXT, of_text())] {
        let (plain_request, plain) = outcome(path, json!({})).await;
        for (name, value, does) in fields.into_iter().chain(of_both()) {
            let (asked, answer) = outcome(path, json!({ name: value })).await;
            let place = format!("{path} {name}: {value}");
            if let Refused(code) = does {
                assert_eq!(answer.status, 400, "{place}");
                assert_eq!(
                    (answer.code().as_str(), answer.param()),
                    (code, json!(name)),
                    "{place}"
                );
                assert!(asked.is_none(), "{place}");
                continue;
            }
            assert_eq!(
                answer.status,
                200,
                "{place}: {}",
                String::from_utf8_lossy(&answer.body)
            );
            let asked = asked.unwrap();
            match does {
                Asks(is_asked) => {
                    assert!(is_asked(&asked), "{place}: {asked:?}");
                    assert!(
                        !is_asked(plain_request.as_ref().unwrap()),
                        "{place} is asked anyway"
                    );
                }
                Shows(is_shown) => assert!(is_shown(&answer), "{place}"),
                Nothing => {
                    assert_eq!(
                        format!("{asked:?}"),
                        format!("{:?}", plain_request.as_ref().unwrap()),
                        "{place}"
                    );
                    assert_eq!(constant(&answer), constant(&plain), "{place}");
                }
                Refused(_) => {}
            }
        }
    }
}

/// Fields that only say something in company.
#[tokio::test]
async fn fields_that_need_others_do_what_they_say() {
    let (asked, _) = outcome(CHAT, json!({"logprobs": true, "top_logprobs": 2})).await;
    assert_eq!(asked.unwrap().top_logprobs, Some(2));
    let (asked, _) = outcome(
        CHAT,
        json!({"tools": [tool()], "tool_choice": "required", "parallel_tool_calls": false}),
    )
    .await;
    let tools = asked.unwrap().tools.unwrap();
    assert_eq!((tools.choice, tools.several), (ToolChoice::Required, false));
    for path in [CHAT, TEXT] {
        let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
        let (_, answer) = outcome(path, usage).await;
        let events = answer.events();
        assert!(events[events.len() - 2]["usage"].is_object());
        // The newer name of the two.
        let (asked, _) = outcome(path, json!({"max_tokens": 3, "max_completion_tokens": 4})).await;
        assert_eq!(asked.unwrap().max_tokens, Some(4));
    }
    let (asked, _) = outcome(TEXT, json!({"n": 2, "best_of": 2})).await;
    assert_eq!(asked.unwrap().sampling.n, 2);
}

/// The tables above have each field of the document, and so of the server, and the other way round.
#[tokio::test]
async fn the_tables_are_whole() {
    let router = router(script(dog), ServeOptions::default());
    let document = send(router, request("GET", "/openapi.json", ""))
        .await
        .json();
    let names = |fields: Vec<(&'static str, Value, Does)>| {
        let names = fields.into_iter().map(|(name, ..)| name.to_owned());
        names.collect::<BTreeSet<String>>()
    };
    let chat = names(of_chat().into_iter().chain(of_both()).collect());
    let text = names(of_text().into_iter().chain(of_both()).collect());
    assert_eq!((chat.len(), text.len()), (35, 18));
    // Harmless ones, and the newer name of max_tokens, are taken on both routes.
    let harmless = of_chat()
        .into_iter()
        .filter(|(_, _, does)| matches!(does, Nothing));
    let mut on_both = names(harmless.collect());
    on_both.retain(|name| {
        ![
            "function_call",
            "logprobs",
            "modalities",
            "parallel_tool_calls",
            "response_format",
            "tool_choice",
            "tools",
        ]
        .contains(&name.as_str())
    });
    on_both.extend(["max_completion_tokens", "service_tier"].map(str::to_owned));
    for (schema, own, others) in [
        ("ChatCompletionRequest", &chat, BTreeSet::new()),
        ("CompletionRequest", &text, on_both),
    ] {
        let properties = &document["components"]["schemas"][schema]["properties"];
        let there: BTreeSet<String> = properties.as_object().unwrap().keys().cloned().collect();
        let mut expected: BTreeSet<String> = own.union(&others).cloned().collect();
        expected.extend(EXTENSIONS.map(str::to_owned));
        assert_eq!(there, expected, "{schema}");
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn answers_have_openais_keys_and_no_others() {
    let object = [
        "choices",
        "created",
        "id",
        "model",
        "object",
        "system_fingerprint",
    ];
    let with_usage = [&object[..], &["usage"]].concat();
    for path in [CHAT, TEXT] {
        let whole = outcome(path, json!({})).await.1.json();
        assert_eq!(keys(&whole), with_usage);
        assert_eq!(whole["system_fingerprint"], "fp_0123456789");
        let choice = &whole["choices"][0];
        let said = if path == CHAT { "message" } else { "text" };
        let mut expected = ["finish_reason", "index", "logprobs", said];
        expected.sort_unstable();
        assert_eq!(keys(choice), expected);
        assert_eq!(choice["logprobs"], Value::Null);
        if path == CHAT {
            assert_eq!(
                choice["message"],
                json!({"role": "assistant", "content": "A dog.", "refusal": null})
            );
        }
        assert_eq!(
            whole["usage"],
            json!({
                "prompt_tokens": 45, "completion_tokens": 4, "total_tokens": 49,
                "prompt_tokens_details": {"cached_tokens": 12, "image_tokens": 32, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
            })
        );
        for include_usage in [false, true] {
            let fields =
                json!({"stream": true, "stream_options": {"include_usage": include_usage}});
            let mut events = outcome(path, fields).await.1.events();
            assert_eq!(events.pop(), Some(json!("[DONE]")));
            if include_usage {
                let last = events.pop().unwrap();
                assert_eq!(last["choices"], json!([]));
                assert_eq!(last["usage"], whole["usage"]);
            }
            for event in &events {
                let expected = if include_usage {
                    &with_usage[..]
                } else {
                    &object[..]
                };
                assert_eq!(keys(event), expected);
                assert!(event["usage"].is_null());
            }
            let ends: Vec<&Value> = events
                .iter()
                .map(|event| &event["choices"][0]["finish_reason"])
                .collect();
            let (last, others) = ends.split_last().unwrap();
            assert_eq!(*last, "stop");
            assert!(others.iter().all(|end| end.is_null()));
        }
    }
    let tier = outcome(CHAT, json!({"service_tier": "auto", "stream": true}))
        .await
        .1
        .events();
    assert!(
        tier[..tier.len() - 1]
            .iter()
            .all(|event| event["service_tier"] == "default")
    );
}

/// Beyond OpenAI's: nobody is told who did not ask.
#[tokio::test]
async fn timings_come_with_the_last_that_is_sent() {
    let timings = Timings {
        prefill: 0.5,
        decode: 2.0,
        ..Timings::default()
    };
    for path in [CHAT, TEXT] {
        let timed = || {
            script(move || {
                let mut events = dog();
                if let Some(Event::Done(summary)) = events.last_mut() {
                    summary.timings = timings;
                }
                events
            })
        };
        let ask = async |fields: Value| {
            let asked = request("POST", path, body(path, &fields).to_string());
            send(router(timed(), ServeOptions::default()), asked).await
        };
        let whole = ask(json!({"timings": true})).await.json();
        let told = &whole["timings"];
        assert_eq!(
            keys(told),
            [
                "decode",
                "image_decode",
                "prefill",
                "preprocess",
                "qformer",
                "queue",
                "total",
                "vit"
            ]
        );
        assert_eq!(
            (&told["prefill"], &told["decode"]),
            (&json!(0.5), &json!(2.0))
        );
        assert!(told["total"].as_f64().unwrap() > 0.0);
        for options in [json!(null), json!({"include_usage": true})] {
            let fields = json!({"timings": true, "stream": true, "stream_options": options});
            let mut events = ask(fields).await.events();
            assert_eq!(events.pop(), Some(json!("[DONE]")));
            let last = events.pop().unwrap();
            assert_eq!(last["timings"]["prefill"], 0.5);
            assert!(events.iter().all(|event| event["timings"].is_null()));
        }
        let untold = ask(json!({"timings": false})).await.json();
        assert!(untold.get("timings").is_none());
    }
}

/// An id of a request is on whatever is sent back: the client's own, where it sends one.
#[tokio::test]
async fn every_answer_has_an_id() {
    let options = || ServeOptions {
        max_body_bytes: 500,
        api_keys: Some(ApiKeys::new(["k"]).unwrap()),
        ..ServeOptions::default()
    };
    let large = "x".repeat(600);
    let chat = body(CHAT, &json!({})).to_string();
    let streamed = body(CHAT, &json!({"stream": true})).to_string();
    let broken = body(CHAT, &json!({"temperature": 3})).to_string();
    let unknown = body(CHAT, &json!({"model": "gpt-5"})).to_string();
    let text = body(TEXT, &json!({})).to_string();
    let failing = || fake(|_| Err(bridge::Error::QueueFull { limit: 1 }));
    let fine = || script(|| vec![token("A"), done("", FinishReason::Stop)]);
    for (method, path, sent, status) in [
        ("POST", CHAT, chat.as_str(), 200),
        ("POST", CHAT, &streamed, 200),
        ("POST", TEXT, &text, 200),
        ("POST", CHAT, &broken, 400),
        ("POST", CHAT, "{", 400),
        ("POST", CHAT, &unknown, 404),
        ("POST", CHAT, &large, 413),
        ("GET", CHAT, "", 405),
        ("GET", "/nothing", "", 404),
        ("GET", "/v1/models", "", 200),
        ("GET", "/health", "", 200),
        ("GET", "/ready", "", 200),
        ("GET", "/metrics", "", 200),
        ("GET", "/openapi.json", "", 200),
    ] {
        let with_key = |mut request: Request<axum::body::Body>| {
            let key = "Bearer k".parse().unwrap();
            request.headers_mut().insert("authorization", key);
            request
        };
        let asked = |sent: &str| with_key(request(method, path, sent.to_owned()));
        let ids = |answer: &Answer| answer.headers["x-request-id"].to_str().unwrap().to_owned();
        let answer = send(router(fine(), options()), asked(sent)).await;
        assert_eq!(answer.status, status, "{method} {path} {sent}");
        let other = send(router(fine(), options()), asked(sent)).await;
        assert!(!ids(&answer).is_empty() && ids(&answer) != ids(&other));
        let mut named = asked(sent);
        let id = "my-own.id_7".parse().unwrap();
        named.headers_mut().insert("x-request-id", id);
        let answer = send(router(fine(), options()), named).await;
        assert_eq!(ids(&answer), "my-own.id_7", "{method} {path}");
    }
    let keyless = request("POST", CHAT, chat.clone());
    let answer = send(router(fine(), options()), keyless).await;
    assert_eq!(answer.status, 401);
    assert!(answer.headers.contains_key("x-request-id"));
    let asked = request("POST", CHAT, chat);
    let full = send(router(failing(), ServeOptions::default()), asked).await;
    assert_eq!(full.status, 429);
    assert!(full.headers.contains_key("x-request-id"));
}
