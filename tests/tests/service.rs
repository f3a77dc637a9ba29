//! The server on the demo bundle under load, with clients that leave, and with several models.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use qbridge_tests::{Server, chat, demo_bundle, demo_bundle_with_template, repository};
use serde_json::{Value, json};

const MODEL: &str = "qbridge-demo";

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("demo/pictures").join(name)).unwrap()
}

/// Runs a program to its end, which must be a good one; what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    out
}

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(repository().join("tests").join(script));
    command
}

fn metrics(server: &Server) -> String {
    let url = server.url.replace("/v1", "/metrics");
    let mut text = String::new();
    let response = ureq::get(url).call().unwrap();
    let mut body = response.into_body().into_reader();
    body.read_to_string(&mut text).unwrap();
    text
}

/// A metric's value of the model.
fn metric(server: &Server, name: &str) -> f64 {
    let text = metrics(server);
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let key = match name.contains('{') {
        true => name.to_owned(),
        false => format!("{name}{{model=\"{MODEL}\"}}"),
    };
    let (_, value) = lines.rfind(|(sample, _)| *sample == key).unwrap();
    value.parse().unwrap()
}

/// Waits until a metric has a value; how long that took.
fn wait_for(server: &Server, name: &str, value: f64) -> Duration {
    let started = Instant::now();
    while metric(server, name) != value {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{name} is not {value}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    started.elapsed()
}

/// Sends a request and leaves the connection open.
fn send(server: &Server, body: &Value) -> TcpStream {
    let host = &server.url["http://".len()..server.url.len() - "/v1".len()];
    let mut stream = TcpStream::connect(host).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

/// A request that goes on for thousands of tokens.
fn endless() -> Value {
    json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count."}],
        "min_tokens": 3500,
        "max_completion_tokens": 3500,
    })
}

#[test]
fn openais_node_client_finds_nothing_amiss() {
    let Some(modules) = std::env::var_os("QBRIDGE_NODE_CLIENT").filter(|dir| !dir.is_empty())
    else {
        eprintln!("SKIPPED: OpenAI's Node client, since there is no node or no npm");
        return;
    };
    let server = Server::start(&demo_bundle(), &[]);
    // Packages are looked for beside the script.
    let script = std::path::Path::new(&modules).join("openai_client.mjs");
    std::fs::copy(repository().join("tests/openai_client.mjs"), &script).unwrap();
    let mut node = Command::new("node");
    let dir = tempfile::tempdir().unwrap();
    let with_tools = demo_bundle_with_template(dir.path(), "tools-hermes.jinja");
    let with_tools = Server::start(&with_tools, &[]);
    let keys = [("QBRIDGE_API_KEYS", "sk-test")];
    let with_keys = Server::start_with(&demo_bundle(), &[], &keys);
    node.arg(script).args([&server.url, MODEL]);
    node.arg(repository().join("demo/pictures"));
    let out = run(node.args([&with_keys.url, &with_tools.url]));
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        14,
        "{out}"
    );
}

#[test]
fn the_api_keeps_to_its_document() {
    // One whose template knows tools, so that all fields lead somewhere.
    let dir = tempfile::tempdir().unwrap();
    let with_tools = demo_bundle_with_template(dir.path(), "tools-hermes.jinja");
    let server = Server::start(&with_tools, &[]);
    let out = run(python("api_properties.py").args([&server.url, MODEL, "60"]));
    assert!(out.contains("No issues found"), "{out}");
}

#[test]
fn mixed_requests_leave_nothing_behind() {
    // A cache of pictures that is soon full: what grows after that is a leak.
    let server = Server::start(
        &demo_bundle(),
        &["--cache-type", "f32", "--image-cache", "1"],
    );
    let pid = server.pid().to_string();
    let out = run(python("soak.py").args([&server.url, MODEL, &pid, "600", "8"]));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["requests"]["left"].as_u64() > Some(10), "{report}");
    assert!(report["requests"]["broken"].as_u64() > Some(10), "{report}");
}

/// The answer that is streamed and the one that is not; both of a client that is gone after a while.
#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = Server::start(&demo_bundle(), &["--slots", "1"]);
    for stream in [true, false] {
        let mut body = endless();
        body["stream"] = json!(stream);
        let client = send(&server, &body);
        wait_for(&server, "qbridge_requests_running", 1.0);
        if stream {
            let mut lines = BufReader::new(&client).lines();
            lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("data: ")));
        }
        // Steps are quick; an answer to the end would take minutes.
        let before = metric(&server, "qbridge_engine_steps_total");
        drop(client);
        wait_for(&server, "qbridge_requests_running", 0.0);
        // Those until the closing of the connection was seen; then not one more.
        let steps = metric(&server, "qbridge_engine_steps_total");
        assert!(
            steps - before < 50.0,
            "stream {stream}: {} steps",
            steps - before
        );
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(metric(&server, "qbridge_engine_steps_total"), steps);
    }
    // Whoever waits for a slot and leaves is not answered either.
    let first = send(&server, &endless());
    wait_for(&server, "qbridge_requests_running", 1.0);
    let second = send(&server, &endless());
    wait_for(&server, "qbridge_requests_waiting", 1.0);
    drop(second);
    drop(first);
    wait_for(&server, "qbridge_requests_running", 0.0);
    let rows = metric(&server, "qbridge_engine_prompt_rows_total");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(metric(&server, "qbridge_engine_prompt_rows_total"), rows);
}

#[test]
fn who_waits_too_long_for_a_slot_is_told_so() {
    let server = Server::start(&demo_bundle(), &["--slots", "1", "--queue-timeout", "1"]);
    let _first = send(&server, &endless());
    wait_for(&server, "qbridge_requests_running", 1.0);
    for request in [
        chat(&picture("dog.png"), "What is this?"),
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": true}),
    ] {
        let (status, answer) = server.post("/chat/completions", &request);
        assert_eq!(
            (status, &answer["error"]["code"]),
            (503, &json!("queue_timeout"))
        );
    }
}

#[test]
fn a_warm_picture_costs_no_vision_time() {
    let server = Server::start(&demo_bundle(), &[]);
    let ask = |question: &str| {
        let (status, answer) =
            server.post("/chat/completions", &chat(&picture("dog.png"), question));
        assert_eq!(status, 200, "{answer}");
    };
    let names = [
        "qbridge_vision_pictures_total",
        "qbridge_vision_batches_total",
        "qbridge_vision_cache_misses_total",
        "qbridge_vision_cache_bytes",
    ];
    let vision = || names.map(|name| metric(&server, name));
    let stage = format!("qbridge_stage_seconds_sum{{model=\"{MODEL}\",stage=\"vit\"}}");
    let seconds = || metric(&server, &stage);
    let before = vision();
    ask("What is this?");
    let (cold, cold_seconds) = (vision(), seconds());
    assert_eq!((cold[0] - before[0], cold[2] - before[2]), (1.0, 1.0));
    assert!(cold_seconds > 0.0);
    for question in ["What is this?", "Is this an animal?", "Is there a banana?"] {
        ask(question);
    }
    assert_eq!(vision(), cold);
    assert_eq!(seconds(), cold_seconds);
    assert_eq!(metric(&server, "qbridge_vision_cache_hits_total"), 3.0);
}

#[test]
fn a_server_with_several_models_after_a_file() {
    let bundle = demo_bundle();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("serve.toml");
    let text = format!(
        "bundles = [{:?}]\nalias = [\"gpt-4o=second\"]\nslots = 2\n",
        format!("second={}", bundle.display())
    );
    std::fs::write(&config, text).unwrap();
    // A bundle that is typed takes the place of those in the file, and its options stay.
    let server = Server::start(
        &bundle,
        &[
            &format!("second={}", bundle.display()),
            "--config",
            config.to_str().unwrap(),
        ],
    );
    let mut request = chat(&picture("dog.png"), "What is this?");
    let mut texts = Vec::new();
    for (name, own) in [(MODEL, MODEL), ("second", "second"), ("gpt-4o", "second")] {
        request["model"] = json!(name);
        let (status, answer) = server.post("/chat/completions", &request);
        assert_eq!((status, &answer["model"]), (200, &json!(own)), "{answer}");
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    request["model"] = json!("third");
    assert_eq!(server.post("/chat/completions", &request).0, 404);
}

/// Nothing is written that could be damaged.
#[test]
fn a_server_that_was_killed_starts_again() {
    let request = chat(&picture("banana.png"), "What is this?");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let server = Server::start(&demo_bundle(), &[]);
        answers.push(server.post("/chat/completions", &request).1["choices"].clone());
        // In the middle of an answer, without a warning: `Server` is dropped by SIGKILL.
        let _client = send(&server, &endless());
        wait_for(&server, "qbridge_requests_running", 1.0);
    }
    assert_eq!(answers[0], answers[1]);
}

/// A panel of a metric that is gone shows nothing, and nobody is told.
#[test]
fn the_dashboard_knows_the_metrics_that_there_are() {
    let server = Server::start(&demo_bundle(), &[]);
    assert_eq!(
        server
            .post(
                "/chat/completions",
                &chat(&picture("dog.png"), "What is this?")
            )
            .0,
        200
    );
    let metrics = metrics(&server);
    let dashboard = std::fs::read_to_string(repository().join("docs/grafana.json")).unwrap();
    let words = dashboard.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let mut known = 0;
    for name in words.filter(|word| word.starts_with("qbridge_")) {
        assert!(
            metrics.contains(&format!("\n{name}{{")) || metrics.contains(&format!("\n{name} ")),
            "{name}"
        );
        known += 1;
    }
    assert!(known > 20);
}
