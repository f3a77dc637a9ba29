//! The OpenAPI document against the server that makes it: what is in it is taken, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::body::Body;
use common::*;
use serde_json::{Map, Value, json};
use server::{ApiKeys, ServeOptions};

async fn document(options: ServeOptions) -> Value {
    let asked = axum::http::Request::get("/openapi.json")
        .header("authorization", "Bearer k")
        .body(Body::empty())
        .unwrap();
    let answer = send(router(script(dog), options), asked).await;
    assert_eq!(answer.status, 200);
    answer.json()
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

/// Values that a schema has room for, the ends of its ranges among them, and values just outside.
fn values(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let schema = resolved(document, schema);
    if let Some(types) = schema["anyOf"].as_array() {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for each in types {
            let (fits, fails) = values(document, each);
            good.extend(fits);
            bad.extend(fails);
        }
        bad.retain(|value| !types.iter().any(|each| fits(document, each, value)));
        return (good, bad);
    }
    match schema["type"].as_str() {
        None => (vec![json!({"any": [1]}), json!("any")], vec![]),
        Some("null") => (
            vec![json!(null)],
            vec![json!(1), json!("a"), json!({"a": 1})],
        ),
        Some("boolean") if schema["const"] == false => {
            (vec![json!(false)], vec![json!(true), json!(0)])
        }
        Some("boolean") => (
            vec![json!(true), json!(false)],
            vec![json!(1), json!("true")],
        ),
        Some("string") if schema["format"] == "image-uri" => (
            vec![picture()["image_url"]["url"].clone()],
            vec![json!(1), json!(["data:,"])],
        ),
        Some("string") if schema["format"] == "json-object" => {
            (vec![json!(""), json!("{}")], vec![json!("a"), json!(1)])
        }
        Some("string") if schema["enum"].is_array() => (
            schema["enum"].as_array().unwrap().clone(),
            vec![json!("neither"), json!(1)],
        ),
        Some("string") if schema["minLength"] == 1 => (vec![json!("a")], vec![json!(""), json!(1)]),
        Some("string") => (vec![json!(""), json!("a")], vec![json!(1), json!(true)]),
        Some("number") => {
            let [low, high] = ["minimum", "maximum"].map(|end| schema[end].as_f64().unwrap());
            let outside = [low - 0.01, high + 0.01].map(|value| json!(value));
            (
                vec![json!(low), json!(high)],
                [&outside[..], &[json!("1")]].concat(),
            )
        }
        Some("integer") => {
            let [low, high] = ["minimum", "maximum"].map(|end| schema[end].as_i64().unwrap());
            let outside = [low.checked_sub(1), high.checked_add(1)]
                .into_iter()
                .flatten();
            let mut bad = vec![json!("1"), json!(0.5)];
            bad.extend(outside.map(|value| json!(value)));
            (vec![json!(low), json!(high)], bad)
        }
        Some("array") => {
            let (good, bad) = values(document, &schema["items"]);
            let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
            let mut fails: Vec<Value> = bad.into_iter().map(|value| json!([value])).collect();
            if least > 0 {
                fails.push(json!([]));
            }
            match schema["maxItems"].as_u64() {
                Some(0) => return (vec![json!([])], vec![json!([1]), json!("a")]),
                Some(most) => fails.push(json!(vec![good[0].clone(); most as usize + 1])),
                None => {}
            }
            (vec![json!(vec![good[0].clone(); least.max(1)])], fails)
        }
        Some("object") => match schema["properties"].as_object() {
            Some(properties) if properties.is_empty() => (vec![json!({})], vec![json!({"a": 1})]),
            None => (vec![json!({})], vec![json!("a"), json!([1])]),
            _ => (
                vec![smallest(document, schema)],
                vec![json!("a"), json!([1])],
            ),
        },
        Some(other) => panic!("{other}"),
    }
}

/// An object of as few fields as it may have.
fn smallest(document: &Value, schema: &Value) -> Value {
    let properties = schema["properties"].as_object().unwrap();
    let required = schema["required"].as_array().unwrap().iter();
    let mut fields: Map<String, Value> = required
        .map(|name| {
            let name = name.as_str().unwrap();
            let value = match name {
                "model" => json!("demo"),
                "role" => json!("user"),
                // A text is compared with pictures.
                "documents" | "text_2" => json!([picture()]),
                _ => values(document, &properties[name]).0[0].clone(),
            };
            (name.to_owned(), value)
        })
        .collect();
    // Only an assistant may say nothing, and a text part has its text.
    for (company, name) in [("role", "content"), ("type", "text")] {
        if properties.contains_key(company) && properties.contains_key(name) {
            fields.insert(name.to_owned(), json!("Hi"));
        }
    }
    Value::Object(fields)
}

/// Whether a value has the type that a schema asks for; good enough for what [`values`] makes.
fn fits(document: &Value, schema: &Value, value: &Value) -> bool {
    let schema = resolved(document, schema);
    match schema["type"].as_str() {
        Some("string") => value.as_str().is_some_and(|text| {
            schema["enum"]
                .as_array()
                .is_none_or(|words| words.contains(value))
                && (schema["minLength"] != 1 || !text.is_empty())
        }),
        Some("array") => value.is_array() && schema["maxItems"] != 0,
        Some("object") => value.is_object() && schema["properties"] != json!({}),
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("number" | "integer") => value.as_f64().is_some_and(|number| {
            (schema["type"] == "number" || value.is_i64())
                && schema["minimum"].as_f64().is_some_and(|low| low <= number)
                && schema["maximum"]
                    .as_f64()
                    .is_some_and(|high| number <= high)
        }),
        _ => schema == &json!({}),
    }
}

/// A whole request around an object.
type Place = Box<dyn Fn(Value) -> Value>;

/// Objects of a schema that sit in requests, each with what puts one into a whole request.
fn places() -> Vec<(&'static str, &'static str, Place)> {
    let message = |message: Value| json!({"model": "demo", "messages": [message]});
    let part = move |part: Value| message(json!({"role": "user", "content": [part]}));
    vec![
        (
            "ChatCompletionRequest",
            "/v1/chat/completions",
            Box::new(|body| body),
        ),
        (
            "CompletionRequest",
            "/v1/completions",
            Box::new(|body| body),
        ),
        ("TokenizeRequest", "/tokenize", Box::new(|body| body)),
        ("DetokenizeRequest", "/detokenize", Box::new(|body| body)),
        ("EmbeddingsRequest", "/v1/embeddings", Box::new(|body| body)),
        ("RerankRequest", "/v1/rerank", Box::new(|body| body)),
        ("ScoreRequest", "/v1/score", Box::new(|body| body)),
        (
            "Input",
            "/v1/embeddings",
            Box::new(|input| json!({"model": "demo", "input": ["a", input]})),
        ),
        (
            "InputPart",
            "/v1/embeddings",
            Box::new(|part| json!({"model": "demo", "input": {"content": [part]}})),
        ),
        ("Message", "/v1/chat/completions", Box::new(message)),
        ("ContentPart", "/v1/chat/completions", Box::new(part)),
        (
            "ImageUrl",
            "/v1/chat/completions",
            Box::new(move |image| part(json!({"type": "image_url", "image_url": image}))),
        ),
        (
            "Tool",
            "/v1/chat/completions",
            Box::new(|tool| chat(json!({"tools": [tool]}))),
        ),
        (
            "Function",
            "/v1/chat/completions",
            Box::new(|function| {
                chat(json!({"tools": [{"type": "function", "function": function}]}))
            }),
        ),
        (
            "ToolChoice",
            "/v1/chat/completions",
            Box::new(|choice| chat(json!({"tools": [tool()], "tool_choice": choice}))),
        ),
        (
            "FunctionName",
            "/v1/chat/completions",
            Box::new(|function| {
                let choice = json!({"type": "function", "function": function});
                chat(json!({"tools": [tool()], "tool_choice": choice}))
            }),
        ),
        (
            "ToolCall",
            "/v1/chat/completions",
            Box::new(move |call| message(json!({"role": "assistant", "tool_calls": [call]}))),
        ),
        (
            "CalledFunction",
            "/v1/chat/completions",
            Box::new(move |function| {
                let call = json!({"id": "a", "type": "function", "function": function});
                message(json!({"role": "assistant", "tool_calls": [call]}))
            }),
        ),
        ("ModelName", "/models/load", Box::new(|body| body)),
        (
            "StreamOptions",
            "/v1/chat/completions",
            Box::new(|options| chat(json!({"stream": true, "stream_options": options}))),
        ),
        (
            "ResponseFormat",
            "/v1/chat/completions",
            Box::new(|format| chat(json!({"response_format": format}))),
        ),
        (
            "JsonSchema",
            "/v1/chat/completions",
            Box::new(|schema| {
                let format = json!({"type": "json_schema", "json_schema": schema});
                chat(json!({"response_format": format}))
            }),
        ),
    ]
}

/// A function by the name that [`values`] makes.
fn tool() -> Value {
    json!({"type": "function", "function": {"name": "a"}})
}

/// What a field needs beside itself.
fn with_company(object: &str, name: &str, value: &Value, mut fields: Value) -> Value {
    fields[name] = value.clone();
    match (object, name) {
        (_, "stream_options") => fields["stream"] = json!(true),
        (_, "num_beams") => fields["temperature"] = json!(0),
        (_, "top_logprobs") => fields["logprobs"] = json!(true),
        (_, "best_of") if value == 128 => fields["n"] = value.clone(),
        ("ResponseFormat", "type") if value == "json_schema" => {
            fields["json_schema"] = json!({"name": "a", "schema": {}});
        }
        ("ResponseFormat", "json_schema") if !value.is_null() => {
            fields["type"] = json!("json_schema");
        }
        ("ChatCompletionRequest", "tool_choice") => fields["tools"] = json!([tool()]),
        ("Message", "content") if value.is_null() => fields["role"] = json!("assistant"),
        ("Message", "tool_calls") => fields["role"] = json!("assistant"),
        ("RerankRequest", "documents") => fields["query"] = picture(),
        ("ScoreRequest", "text_2") => fields["text_1"] = picture(),
        ("RerankRequest", "query") if is_picture(value) => fields["documents"] = json!("a"),
        ("ScoreRequest", "text_1") if is_picture(value) => fields["text_2"] = json!("a"),
        ("Input" | "InputPart", "type") if value == "image_url" => {
            fields["text"] = json!(null);
            fields["image_url"] = picture()["image_url"].clone();
        }
        ("Input" | "InputPart", "image_url" | "image" | "content") if !value.is_null() => {
            fields["text"] = json!(null);
        }
        ("Input" | "InputPart", "text") if value.is_null() => {
            fields["image"] = picture()["image_url"]["url"].clone();
        }
        ("ContentPart", "type") if value == "image_url" => {
            fields["text"] = json!(null);
            fields["image_url"] = picture()["image_url"].clone();
        }
        ("ContentPart", "image_url") if !value.is_null() => {
            fields["type"] = json!("image_url");
            fields["text"] = json!(null);
        }
        ("ContentPart", "text") if value.is_null() => {
            fields["type"] = json!("image_url");
            fields["image_url"] = picture()["image_url"].clone();
        }
        _ => {}
    }
    fields
}

fn is_picture(value: &Value) -> bool {
    ["image", "image_url"]
        .iter()
        .any(|name| value.get(name).is_some())
}

async fn post_to(path: &str, body: &Value) -> Answer {
    let request = request("POST", path, body.to_string());
    send(router(script(dog), ServeOptions::default()), request).await
}

#[tokio::test]
async fn what_the_document_allows_is_taken_and_what_it_does_not_is_refused_by_name() {
    let document = document(ServeOptions::default()).await;
    for (object, path, place) in places() {
        let schema = &document["components"]["schemas"][object];
        let required = schema["required"].as_array().unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert!(!properties.is_empty());
        for (name, property) in properties {
            let (good, bad) = values(&document, property);
            for value in &good {
                // The one name that the server has, and what answers a call that there must have been.
                let of_tools = name == "tool_call_id" || name == "role" && *value == "tool";
                // Of the features that the model has.
                let too_many = name == "dimensions" && value.as_u64() > Some(4);
                if name == "model" && *value != "demo" || of_tools && !value.is_null() || too_many {
                    continue;
                }
                let fields = with_company(object, name, value, smallest(&document, schema));
                let body = place(fields);
                let answer = post_to(path, &body).await;
                assert_eq!(answer.status, 200, "{object}.{name}: {body}");
            }
            for value in &bad {
                let fields = with_company(object, name, value, smallest(&document, schema));
                let answer = post_to(path, &place(fields)).await;
                assert_eq!(answer.status, 400, "{object}.{name}: {value}");
                let param = answer.param();
                let param = param.as_str().unwrap();
                assert!(
                    param.contains(name.as_str()) || param == "response_format",
                    "{object}.{name}: {value}: {param}"
                );
            }
            if required.contains(&json!(name)) {
                for absent in [true, false] {
                    let mut fields = smallest(&document, schema);
                    match absent {
                        true => fields.as_object_mut().unwrap().remove(name),
                        false => fields
                            .as_object_mut()
                            .unwrap()
                            .insert(name.clone(), json!(null)),
                    };
                    let answer = post_to(path, &place(fields)).await;
                    assert_eq!(
                        answer.code(),
                        "missing_required_parameter",
                        "{object}.{name}"
                    );
                }
            } else {
                let fields = with_company(object, name, &json!(null), smallest(&document, schema));
                let answer = post_to(path, &place(fields)).await;
                assert_eq!(answer.status, 200, "{object}.{name}: null");
            }
        }
        let company = with_company(object, "not_in_it", &json!(1), smallest(&document, schema));
        let answer = post_to(path, &place(company)).await;
        assert_eq!(answer.code(), "unknown_parameter", "{object}");
        let company = with_company(
            object,
            "not_in_it",
            &json!(null),
            smallest(&document, schema),
        );
        assert_eq!(post_to(path, &place(company)).await.status, 200, "{object}");
    }
}

#[tokio::test]
async fn every_path_of_the_document_is_there() {
    let document = document(ServeOptions::default()).await;
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let asked = request(&method.to_uppercase(), &path.replace("{id}", "demo"), "");
            let answer = send(router(script(dog), ServeOptions::default()), asked).await;
            let expected = if operation["requestBody"].is_null() {
                200
            } else {
                400
            };
            assert_eq!(answer.status, expected, "{method} {path}");
            operations += 1;
        }
    }
    assert_eq!(operations, 15);
}

#[tokio::test]
async fn the_document_says_who_needs_a_key() {
    let open = document(ServeOptions::default()).await;
    assert!(open.get("security").is_none());
    let options = ServeOptions {
        api_keys: Some(ApiKeys::new(["k"]).unwrap()),
        ..ServeOptions::default()
    };
    let guarded = document(options.clone()).await;
    assert_eq!(guarded["security"], json!([{"key": []}]));
    let asked = || request("GET", "/openapi.json", "");
    assert_eq!(
        send(router(script(dog), options), asked()).await.status,
        401
    );
    for (path, methods) in guarded["paths"].as_object().unwrap() {
        let open = ["/health", "/ready"].contains(&path.as_str());
        for operation in methods.as_object().unwrap().values() {
            assert_eq!(operation["security"] == json!([]), open, "{path}");
        }
    }
}

#[tokio::test]
async fn every_reference_of_the_document_leads_somewhere() {
    fn walk(document: &Value, value: &Value, count: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(path) = map.get("$ref") {
                    let path = path.as_str().unwrap().strip_prefix('#').unwrap();
                    assert!(document.pointer(path).is_some(), "{path}");
                    *count += 1;
                }
                map.values().for_each(|value| walk(document, value, count));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(document, value, count)),
            _ => {}
        }
    }
    let document = document(ServeOptions::default()).await;
    let mut count = 0;
    walk(&document, &document, &mut count);
    assert!(count > 50);
}
