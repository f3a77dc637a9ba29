//! The server on the demo bundle, as OpenAI's clients use it.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use qbridge_tests::{Server, chat, demo_bundle, demo_bundle_with_template, repository};
use serde_json::{Value, json};

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("demo/pictures").join(name)).unwrap()
}

fn answer(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn openais_own_client_finds_nothing_amiss() {
    let server = Server::start(&demo_bundle(), &[]);
    let dir = tempfile::tempdir().unwrap();
    let with_tools = demo_bundle_with_template(dir.path(), "tools-hermes.jinja");
    let one_slot = ["--slots", "1", "--queue", "1"];
    let others = [
        (
            "keys",
            Server::start_with(&demo_bundle(), &[], &[("QBRIDGE_API_KEYS", "sk-test")]),
        ),
        ("full", Server::start(&demo_bundle(), &one_slot)),
        (
            "slow",
            Server::start(&demo_bundle(), &["--slots", "1", "--queue-timeout", "1"]),
        ),
        ("tools", Server::start(&with_tools, &[])),
    ];
    let output = Command::new("python3")
        .arg(repository().join("tests/openai_client.py"))
        .args([&server.url, "qbridge-demo"])
        .arg(repository().join("demo/pictures/dog.png"))
        .args(
            others
                .iter()
                .map(|(kind, server)| format!("{kind}={}", server.url)),
        )
        .output()
        .unwrap();
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{out}{err}");
    let checks = out.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(checks, 22, "{out}");
}

#[test]
fn eight_at_once_answer_as_one_at_a_time() {
    let server = Server::start(&demo_bundle(), &["--slots", "8", "--cache-type", "f32"]);
    // Questions that the model is sure of: sums in another order, as in another batch, may turn a near tie.
    let requests: Vec<Value> = ["dog.png", "banana.png", "bicycle.png", "sunflower.png"]
        .iter()
        .flat_map(|name| {
            ["What is this?", "Is there a banana?"].map(|question| chat(&picture(name), question))
        })
        .collect();
    let single: Vec<String> = requests
        .iter()
        .map(|request| answer(&server.post("/chat/completions", request).1).to_owned())
        .collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = requests
            .iter()
            .map(|request| {
                scope.spawn(|| answer(&server.post("/chat/completions", request).1).to_owned())
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(single, together);
}

#[test]
fn a_stream_spells_the_same_answer() {
    let server = Server::start(&demo_bundle(), &[]);
    let mut request = chat(&picture("banana.png"), "What is this?");
    let whole = answer(&server.post("/chat/completions", &request).1).to_owned();
    request["stream"] = json!(true);
    let (status, text) = server.post_text("/chat/completions", &request.to_string());
    assert_eq!(status, 200);
    let events: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let streamed: String = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(streamed, whole);
}

#[test]
fn a_second_turn_knows_the_first_and_counts_the_pictures_rows() {
    let server = Server::start(&demo_bundle(), &[]);
    let mut request = chat(&picture("dog.png"), "What is this?");
    let (_, first) = server.post("/chat/completions", &request);
    assert_eq!(first["usage"]["prompt_tokens_details"]["image_tokens"], 32);
    let messages = request["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": answer(&first)}));
    messages.push(json!({"role": "user", "content": "Is this an animal?"}));
    let (status, second) = server.post("/chat/completions", &request);
    assert_eq!(status, 200, "{second}");
    assert!(second["usage"]["prompt_tokens"].as_u64() > first["usage"]["prompt_tokens"].as_u64());
    // All of the first turn's prompt, its picture too, is in the KV cache.
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(
        cached.as_u64() >= first["usage"]["prompt_tokens"].as_u64(),
        "{second}"
    );
}
