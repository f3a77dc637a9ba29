//! Functions that a model may call: what it is told of them, and its calls in OpenAI's shapes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::{Arc, Mutex};

use bridge::event::{Event, FinishReason};
use bridge::model::{self, Prompt, ToolChoice, Tools};
use common::*;
use prompts::{Part, Role, Tool, ToolCall};
use serde_json::{Value, json};
use server::ServeOptions;
use tokio::sync::mpsc::channel;

fn weather() -> Value {
    let schema = json!({"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]});
    json!({"type": "function", "function": {"name": "weather", "description": "Of a place.", "parameters": schema}})
}

fn now() -> Value {
    json!({"type": "function", "function": {"name": "now"}})
}

const CALLS: &str = "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Ulm\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"now\"}\n</tool_call>";

/// A model that writes `text` in pieces of three characters.
fn writes(text: &'static str, finish_reason: FinishReason) -> Fake {
    script(move || {
        let letters: Vec<char> = text.chars().collect();
        let pieces = letters
            .chunks(3)
            .map(|piece| piece.iter().collect::<String>());
        let mut events: Vec<Event> = pieces.map(|piece| token(&piece)).collect();
        events.push(done("", finish_reason));
        events
    })
}

/// The choice of an answer, its calls without their ids, which are told apart.
async fn answered(backend: Fake, fields: Value) -> Value {
    let answer = ask(backend, fields).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let mut choice = answer.json()["choices"][0].clone();
    let mut ids: Vec<String> = Vec::new();
    let calls = choice["message"].get_mut("tool_calls");
    for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
        let id = call.as_object_mut().unwrap().remove("id").unwrap();
        let id = id.as_str().unwrap().to_owned();
        assert!(id.starts_with("call_") && !ids.contains(&id), "{id}");
        ids.push(id);
    }
    choice
}

fn call(name: &str, arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "arguments": arguments}})
}

#[tokio::test]
async fn calls_have_openais_shape() {
    let asked = || json!({"tools": [weather(), now()]});
    let both = json!([call("weather", "{\"place\": \"Ulm\"}"), call("now", "{}")]);
    let choice = answered(writes(CALLS, FinishReason::Stop), asked()).await;
    assert_eq!(
        choice,
        json!({
            "index": 0,
            "message": {"role": "assistant", "content": "I look.", "refusal": null, "tool_calls": both},
            "logprobs": null,
            "finish_reason": "tool_calls",
        })
    );
    // Calls alone leave no text.
    let (_, alone) = CALLS.split_at("I look.\n".len());
    let choice = answered(writes(alone, FinishReason::Stop), asked()).await;
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["tool_calls"], both);
    // An answer that is cut says so, and holds what came.
    let (cut, _) = alone.split_at(alone.find("Ulm").unwrap());
    let choice = answered(writes(cut, FinishReason::Length), asked()).await;
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([call("weather", "{\"place\": \"")])
    );
    // Text is text, and has no such field.
    let choice = answered(script(dog), asked()).await;
    let message = json!({"role": "assistant", "content": "A dog.", "refusal": null});
    assert_eq!(
        (&choice["message"], &choice["finish_reason"]),
        (&message, &json!("stop"))
    );
}

#[tokio::test]
async fn who_wants_one_call_or_none_gets_no_more() {
    let of = |fields: Value| {
        let mut asked = json!({"tools": [weather(), now()]});
        for (name, value) in fields.as_object().unwrap() {
            asked[name] = value.clone();
        }
        answered(writes(CALLS, FinishReason::Stop), asked)
    };
    let choice = of(json!({"parallel_tool_calls": false})).await;
    let one = json!([call("weather", "{\"place\": \"Ulm\"}")]);
    assert_eq!(choice["message"]["tool_calls"], one);
    let choice = of(json!({"tool_choice": "none"})).await;
    assert_eq!(choice["message"]["content"], CALLS);
    assert!(choice["message"].get("tool_calls").is_none());
    assert_eq!(choice["finish_reason"], "stop");
    // Without tools too.
    let choice = answered(writes(CALLS, FinishReason::Stop), json!({})).await;
    assert_eq!(choice["message"]["content"], CALLS);
}

#[tokio::test]
async fn calls_are_streamed_piece_by_piece() {
    let asked = json!({"tools": [weather(), now()], "stream": true, "n": 2, "stream_options": {"include_usage": true}});
    let events = ask(writes(CALLS, FinishReason::Stop), asked).await.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    for index in 0..2 {
        let of_choice = |event: &&Value| event["choices"][0]["index"] == index;
        let of_choice: Vec<&Value> = events.iter().filter(of_choice).collect();
        let deltas: Vec<&Value> = of_choice
            .iter()
            .map(|event| &event["choices"][0]["delta"])
            .collect();
        assert_eq!(deltas[0], &json!({"role": "assistant", "content": ""}));
        let text: String = deltas
            .iter()
            .filter_map(|delta| delta["content"].as_str())
            .collect();
        assert_eq!(text, "I look.");
        let pieces: Vec<&Value> = deltas
            .iter()
            .filter_map(|delta| delta["tool_calls"].as_array())
            .map(|calls| {
                assert_eq!(calls.len(), 1);
                &calls[0]
            })
            .collect();
        for (at, name, arguments) in [(0, "weather", "{\"place\": \"Ulm\"}"), (1, "now", "{}")] {
            let of_call: Vec<&&Value> =
                pieces.iter().filter(|piece| piece["index"] == at).collect();
            let mut first = (**of_call[0]).clone();
            let id = first.as_object_mut().unwrap().remove("id").unwrap();
            assert!(id.as_str().unwrap().starts_with("call_"));
            assert_eq!(
                first,
                json!({"index": at, "type": "function", "function": {"name": name, "arguments": ""}})
            );
            let later = of_call[1..].iter().map(|piece| {
                let mut known = json!({"index": at, "function": {}});
                known["function"]["arguments"] = piece["function"]["arguments"].clone();
                assert_eq!(**piece, &known);
                piece["function"]["arguments"].as_str().unwrap()
            });
            let later: Vec<&str> = later.collect();
            assert_eq!(later.concat(), arguments);
            assert!(at == 1 || later.len() > 2, "{later:?}");
        }
        let last = of_choice.last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(last["choices"][0]["delta"], json!({}));
    }
}

/// What the model is told of the first of some bodies, and so on.
async fn told(bodies: &[Value]) -> Vec<model::Request> {
    let (backend, seen) = recorder();
    let router = router(backend, ServeOptions::default());
    for body in bodies {
        let answer = send(router.clone(), post(&chat(body.clone()))).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.json());
    }
    let mut seen: std::sync::MutexGuard<'_, Vec<model::Request>> = seen.lock().unwrap();
    std::mem::take(&mut *seen)
}

#[tokio::test]
async fn the_model_is_told_what_it_may_call() {
    let named = json!({"type": "function", "function": {"name": "now"}});
    let mut strict = weather();
    strict["function"]["strict"] = json!(true);
    let told = told(&[
        json!({"tools": [weather(), now()]}),
        json!({"tools": [weather(), now()], "tool_choice": "required", "parallel_tool_calls": false}),
        json!({"tools": [weather(), now()], "tool_choice": named}),
        json!({"tools": [strict], "tool_choice": "auto", "parallel_tool_calls": true}),
        json!({"tools": [weather()], "tool_choice": "none"}),
        json!({"tools": [], "tool_choice": "auto", "parallel_tool_calls": false}),
    ])
    .await;
    let functions = vec![
        Tool {
            name: "weather".to_owned(),
            description: Some("Of a place.".to_owned()),
            parameters: Some(weather()["function"]["parameters"].clone()),
        },
        Tool {
            name: "now".to_owned(),
            description: None,
            parameters: None,
        },
    ];
    let auto = Tools {
        functions,
        choice: ToolChoice::Auto,
        strict: false,
        several: true,
    };
    assert_eq!(told[0].tools, Some(auto.clone()));
    let required = Tools {
        choice: ToolChoice::Required,
        several: false,
        ..auto.clone()
    };
    assert_eq!(told[1].tools, Some(required));
    let one = Tools {
        choice: ToolChoice::Function(1),
        ..auto.clone()
    };
    assert_eq!(told[2].tools, Some(one));
    let strict = Tools {
        functions: auto.functions[..1].to_vec(),
        strict: true,
        ..auto
    };
    assert_eq!(told[3].tools, Some(strict));
    assert_eq!((&told[4].tools, &told[5].tools), (&None, &None));
}

fn conversation() -> Value {
    json!([
        {"role": "user", "content": "And the weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"place\": \"Ulm\"}"}},
            {"id": "2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ]},
        {"role": "tool", "tool_call_id": "2", "content": "noon"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "sun"}]},
    ])
}

#[tokio::test]
async fn calls_and_results_are_passed_on() {
    let told = told(&[json!({"messages": conversation(), "tools": [weather(), now()]})]).await;
    let Prompt::Chat(messages) = &told[0].prompt else {
        panic!()
    };
    let call = |id: &str, name: &str, arguments: Value| {
        Part::Call(ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: arguments.as_object().unwrap().clone(),
        })
    };
    assert_eq!(
        messages[1].parts,
        [
            Part::Text(String::new()),
            call("1", "weather", json!({"place": "Ulm"})),
            call("2", "now", json!({})),
        ]
    );
    assert_eq!(
        (messages[2].role, messages[3].role),
        (Role::Tool, Role::Tool)
    );
    let result =
        |id: &str, text: &str| [Part::Text(text.to_owned()), Part::ResultOf(id.to_owned())];
    assert_eq!(messages[2].parts, result("2", "noon"));
    assert_eq!(messages[3].parts, result("1", "sun"));
}

/// The field that a request is refused for, and the code.
async fn refused(backend: Fake, fields: Value) -> (String, String) {
    let answer = ask(backend, fields.clone()).await;
    assert_eq!(answer.status, 400, "{fields}");
    (answer.param().as_str().unwrap().to_owned(), answer.code())
}

#[tokio::test]
async fn what_is_wrong_with_tools_is_named() {
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let messages = |index: usize, name: &str, value: Value| {
        let mut messages = conversation();
        messages[index][name] = value;
        json!({ "messages": messages })
    };
    let calls = |call: Value| messages(1, "tool_calls", json!([call]));
    let mut foreign = conversation();
    foreign[0]["tool_calls"] = foreign[1]["tool_calls"].clone();
    for (fields, param, code) in [
        (json!({"tools": {"a": 1}}), "tools", "invalid_value"),
        (json!({"tools": vec![now(); 129]}), "tools", "invalid_value"),
        (
            json!({"tools": [now(), now()]}),
            "tools[1].function.name",
            "invalid_value",
        ),
        (json!({"tools": [3]}), "tools[0]", "invalid_value"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
            "missing_required_parameter",
        ),
        (
            json!({"tools": [{"type": "custom", "custom": {}}]}),
            "tools[0].type",
            "unsupported_parameter",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a"}, "more": 1}]}),
            "tools[0].more",
            "unknown_parameter",
        ),
        (
            function(json!({})),
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (
            function(json!({"name": "a b"})),
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            function(json!({"name": "a".repeat(65)})),
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            function(json!({"name": "a", "parameters": []})),
            "tools[0].function.parameters",
            "invalid_value",
        ),
        (
            function(json!({"name": "a", "strict": "yes"})),
            "tools[0].function.strict",
            "invalid_value",
        ),
        (
            function(json!({"name": "a", "secret": 1})),
            "tools[0].function.secret",
            "unknown_parameter",
        ),
        (
            json!({"tool_choice": "required"}),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"tools": [now()], "tool_choice": "any"}),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"tools": [now()], "tool_choice": 3}),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"tools": [now()], "tool_choice": {"type": "allowed_tools"}}),
            "tool_choice.type",
            "unsupported_parameter",
        ),
        (
            json!({"tools": [now()], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "b"}}}),
            "tool_choice",
            "invalid_value",
        ),
        (
            json!({"tools": [now()], "parallel_tool_calls": 1}),
            "parallel_tool_calls",
            "invalid_value",
        ),
        (
            json!({"tools": [now()], "response_format": {"type": "json_object"}}),
            "response_format",
            "unsupported_parameter",
        ),
        (
            json!({"tools": [now()], "tool_choice": "required", "num_beams": 2, "temperature": 0}),
            "tool_choice",
            "unsupported_parameter",
        ),
        (
            messages(2, "tool_call_id", json!("3")),
            "messages[2].tool_call_id",
            "invalid_value",
        ),
        (
            messages(2, "tool_call_id", json!(null)),
            "messages[2].tool_call_id",
            "missing_required_parameter",
        ),
        (
            messages(0, "tool_call_id", json!("1")),
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        (
            messages(2, "content", json!(null)),
            "messages[2].content",
            "missing_required_parameter",
        ),
        (
            json!({ "messages": foreign }),
            "messages[0].tool_calls",
            "invalid_value",
        ),
        (
            calls(json!({"type": "function", "function": {"name": "a", "arguments": ""}})),
            "messages[1].tool_calls[0].id",
            "missing_required_parameter",
        ),
        (
            calls(json!({"id": "1", "function": {"name": "a", "arguments": ""}})),
            "messages[1].tool_calls[0].type",
            "missing_required_parameter",
        ),
        (
            calls(json!({"id": "1", "type": "function", "function": {"name": "a"}})),
            "messages[1].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
        (
            calls(
                json!({"id": "1", "type": "function", "function": {"name": "a", "arguments": "[]"}}),
            ),
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (
            calls(
                json!({"id": "", "type": "function", "function": {"name": "a", "arguments": ""}}),
            ),
            "messages[1].tool_calls[0].id",
            "invalid_value",
        ),
    ] {
        let backend = fake(|_| panic!("the model was asked"));
        let (named, told) = refused(backend, fields.clone()).await;
        assert_eq!((named.as_str(), told.as_str()), (param, code), "{fields}");
    }
    // What only the model finds.
    let schema = |_| {
        Err(bridge::Error::ToolSchema {
            tool: 1,
            reason: "no type".to_owned(),
        })
    };
    let (param, _) = refused(fake(schema), json!({"tools": [now(), weather()]})).await;
    assert_eq!(param, "tools[1].function.parameters");
}

#[tokio::test]
async fn a_model_that_calls_nothing_says_so() {
    for (syntax, words) in [
        (prompts::Error::NoTools, "no place for tools"),
        (
            prompts::Error::UnknownCallSyntax,
            "a form that is not known",
        ),
    ] {
        let mut messages = conversation();
        messages.as_array_mut().unwrap().pop();
        let result = json!([messages[0], messages[2]]);
        for (fields, param) in [
            (json!({"tools": [now()]}), "tools"),
            (json!({ "messages": messages }), "messages[1].tool_calls"),
            (json!({ "messages": result }), "messages[1].role"),
        ] {
            let backend = script(dog).without_tools(syntax.clone());
            let answer = ask(backend, fields.clone()).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (400, "unsupported_parameter".into())
            );
            assert_eq!(answer.param(), param, "{fields}");
            assert!(answer.error()["message"].as_str().unwrap().contains(words));
        }
        let backend = script(dog).without_tools(syntax.clone());
        let nothing = json!({"tools": [], "tool_choice": "auto", "parallel_tool_calls": true});
        assert_eq!(ask(backend, nothing).await.status, 200);
    }
}

/// A model that answers each prompt with its text, or its first token.
fn echo() -> (Fake, Arc<Mutex<Vec<Prompt>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let backend = fake(move |request| {
        kept.lock().unwrap().push(request.prompt.clone());
        let said = match request.prompt {
            Prompt::Raw(text) => text,
            Prompt::Tokens(ids) => format!("token {}", ids[0]),
            Prompt::Chat(_) => panic!(),
        };
        let (sender, receiver) = channel(64);
        for n in 0..request.sampling.n {
            for mut event in [token(&said), done("", FinishReason::Stop)] {
                match &mut event {
                    Event::Token { choice, .. } => *choice = n,
                    Event::Done(summary) => summary.choice = n,
                    Event::Error(_) => {}
                }
                sender.try_send(event).unwrap();
            }
        }
        Ok(receiver)
    });
    (backend, seen)
}

fn text_request(prompt: Value, fields: Value) -> axum::http::Request<axum::body::Body> {
    let mut body = json!({"model": "demo", "prompt": prompt});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    request("POST", "/v1/completions", body.to_string())
}

#[tokio::test]
async fn a_text_request_may_have_many_prompts() {
    for (prompt, texts) in [
        (json!("a"), vec!["a"]),
        (json!(["a"]), vec!["a"]),
        (json!(["a", "b", ""]), vec!["a", "b", ""]),
        (json!([7, 8]), vec!["token 7"]),
        (json!([[7, 8], [0]]), vec!["token 7", "token 0"]),
    ] {
        for n in [1, 2] {
            let texts: Vec<&str> = texts.iter().flat_map(|text| vec![*text; n]).collect();
            let (backend, seen) = echo();
            let router = router(backend, ServeOptions::default());
            let asked = text_request(prompt.clone(), json!({ "n": n }));
            let whole = send(router.clone(), asked).await.json();
            let choices = whole["choices"].as_array().unwrap();
            let said: Vec<&str> = choices
                .iter()
                .map(|choice| choice["text"].as_str().unwrap())
                .collect();
            assert_eq!(said, texts, "{prompt}");
            let indices: Vec<u64> = choices
                .iter()
                .map(|choice| choice["index"].as_u64().unwrap())
                .collect();
            assert_eq!(indices, (0..texts.len() as u64).collect::<Vec<_>>());
            // Each prompt once, the tokens of all.
            let prompts = seen.lock().unwrap().len();
            assert_eq!(whole["usage"]["prompt_tokens"], 45 * prompts);
            assert_eq!(whole["usage"]["completion_tokens"], 4 * texts.len());

            let options =
                json!({"n": n, "stream": true, "stream_options": {"include_usage": true}});
            let events = send(router, text_request(prompt.clone(), options))
                .await
                .events();
            let mut streamed = vec![String::new(); texts.len()];
            let mut ends = vec![0; texts.len()];
            for event in &events {
                for choice in event["choices"].as_array().into_iter().flatten() {
                    let index = choice["index"].as_u64().unwrap() as usize;
                    streamed[index].push_str(choice["text"].as_str().unwrap());
                    ends[index] += usize::from(!choice["finish_reason"].is_null());
                }
            }
            assert_eq!(streamed, texts);
            assert_eq!(ends, vec![1; texts.len()]);
            let usage = &events[events.len() - 2];
            assert_eq!(usage["choices"], json!([]));
            assert_eq!(usage["usage"], whole["usage"]);
        }
    }
}

#[tokio::test]
async fn prompts_that_are_none_are_named() {
    for (prompt, param) in [
        (json!([]), "prompt"),
        (json!(3), "prompt"),
        (json!({"a": 1}), "prompt"),
        (json!([true]), "prompt[0]"),
        (json!(["a", 3]), "prompt[1]"),
        (json!([3, "a"]), "prompt[0]"),
        (json!(["a", [3]]), "prompt[1]"),
        (json!([[3], "a"]), "prompt[1]"),
        (json!([[3], []]), "prompt[1]"),
        (json!([[3], [1.5]]), "prompt[1]"),
        (json!([1, -1]), "prompt"),
        (json!([1, 4_294_967_296u64]), "prompt"),
        (json!(vec!["a"; 129]), "prompt"),
    ] {
        let (backend, _) = echo();
        let asked = text_request(prompt.clone(), json!({}));
        let answer = send(router(backend, ServeOptions::default()), asked).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "invalid_value".into()),
            "{prompt}"
        );
        assert_eq!(answer.param(), param, "{prompt}");
    }
    // An id that the vocabulary does not have is the prompt's fault too.
    let refuses = fake(|_| {
        Err(bridge::Error::InvalidRequest {
            reason: "token 99 is not in the vocabulary of 9".to_owned(),
        })
    });
    let asked = text_request(json!([99]), json!({}));
    let answer = send(router(refuses, ServeOptions::default()), asked).await;
    assert_eq!(
        (answer.status.as_u16(), answer.param()),
        (400, json!("prompt"))
    );
}

/// Each prompt counts as a request: none waits in the model's queue beyond its limit.
#[tokio::test]
async fn many_prompts_take_as_many_places() {
    let options = || ServeOptions {
        max_requests: 3,
        ..ServeOptions::default()
    };
    let (backend, held) = hanging();
    let router = router(backend, options());
    let prompts = |n: usize| text_request(json!(vec!["a"; n]), json!({}));
    let answer = send(router.clone(), prompts(4)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.param()),
        (400, json!("prompt"))
    );
    let running = tokio::spawn(send(router.clone(), prompts(2)));
    until(|| held.lock().unwrap().len() == 2).await;
    assert_eq!(send(router.clone(), prompts(2)).await.code(), "queue_full");
    running.abort();
    let _ = running.await;
    // All places are free again, as soon as the work that was under way has noticed.
    let started = std::time::Instant::now();
    while held.lock().unwrap().len() < 5 {
        assert!(started.elapsed().as_secs() < 60, "the places stay taken");
        let later = tokio::spawn(send(router.clone(), prompts(3)));
        until(|| held.lock().unwrap().len() == 5 || later.is_finished()).await;
        later.abort();
    }
}
