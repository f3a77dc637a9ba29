//! What the server tells a collector of traces, on the demo bundle; the collector is the test's own.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::spawn;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use qbridge_tests::{Server, chat, demo_bundle, one_line_error, qbridge, repository};
use serde_json::{Value, json};

const KEY: &str = "sk-not-in-any-span";
const QUESTION: &str = "What is this, and who is Rumpelstiltskin?";
const ROUTE: &str = "POST /v1/chat/completions";
const PARENT: &str = "00f067aa0ba902b7";

/// What a collector does with a batch.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    /// Says nothing for as long as the connection lives.
    Sleeps,
    /// Sends megabytes of nonsense, with status 200.
    Lies,
    /// Status 503, and come back in an hour.
    Refuses,
}

/// Collects batches.
struct Collector {
    url: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start(manner: Manner) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = bodies.clone();
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                spawn(move || serve(&stream, manner, &kept));
            }
        });
        Collector { url, bodies }
    }

    fn batches(&self) -> Vec<ExportTraceServiceRequest> {
        let bodies = self.bodies.lock().unwrap();
        let decode = |body: &Vec<u8>| ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        bodies.iter().map(decode).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.batches().into_iter().flat_map(|it| it.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }
}

/// Answers requests of one connection.
fn serve(stream: &TcpStream, manner: Manner, kept: &Mutex<Vec<Vec<u8>>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 0 && line != "\r\n" {
            let line = std::mem::take(&mut line).to_ascii_lowercase();
            if line.starts_with("post ") {
                assert_eq!(line, "post /v1/traces http/1.1\r\n");
            }
            assert!(!line.starts_with("content-type") || line.contains("application/x-protobuf"));
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if length == 0 {
            return None;
        }
        let (head, answer) = match manner {
            Manner::Takes => ("200 OK", Vec::new()),
            Manner::Sleeps => {
                // Until the other side gives up.
                let _ = reader.read_to_end(&mut body);
                return None;
            }
            Manner::Lies => ("200 OK", vec![0xff; 8 << 20]),
            Manner::Refuses => ("503 No\r\nretry-after: 3600", b"\x1b[2Jno".to_vec()),
        };
        kept.lock().ok()?.push(body);
        let head = format!(
            "HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&answer).ok()?;
    }
}

fn picture(name: &str) -> Vec<u8> {
    std::fs::read(repository().join("demo/pictures").join(name)).unwrap()
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let json = |value: &AnyValue| match value.value.clone().unwrap() {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::DoubleValue(number) => json!(number),
        Any::ArrayValue(list) => {
            let texts = list.values.into_iter().map(|value| match value.value {
                Some(Any::StringValue(text)) => json!(text),
                other => panic!("{other:?}"),
            });
            texts.collect()
        }
        other => panic!("{key}: {other:?}"),
    };
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref().map(json)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The request of a trace, and the spans below it.
fn request_of(spans: &[Span], trace: &str) -> (Span, Vec<Span>) {
    let spans = spans.iter().filter(|span| hex(&span.trace_id) == trace);
    let is_request = |span: &Span| span.kind == SpanKind::Server as i32;
    let (requests, stages): (Vec<Span>, Vec<Span>) = spans.cloned().partition(is_request);
    let [request] = requests.try_into().unwrap();
    for stage in &stages {
        assert_eq!(stage.parent_span_id, request.span_id, "{stage:?}");
        assert_eq!(stage.kind, SpanKind::Internal as i32);
        let (start, end) = (stage.start_time_unix_nano, stage.end_time_unix_nano);
        assert!(
            request.start_time_unix_nano <= start && start <= end,
            "{stage:?}"
        );
        assert!(end <= request.end_time_unix_nano, "{stage:?}");
    }
    (request, stages)
}

fn names(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

/// Posts a request that a trace goes on with; status and answer.
fn ask(server: &Server, body: &Value, traceparent: &str) -> (u16, String) {
    let response = ureq::post(format!("{}/chat/completions", server.url))
        .config()
        .http_status_as_error(false)
        .build()
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {KEY}"))
        .header("traceparent", traceparent)
        .send(body.to_string())
        .unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().read_to_string().unwrap())
}

fn trace(number: u8) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e47{number:02x}")
}

#[test]
fn a_request_is_a_span_with_its_stages_below() {
    let collector = Collector::start(Manner::Takes);
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_SERVICE_NAME", "pictures"),
        ("QBRIDGE_API_KEYS", KEY),
        ("QBRIDGE_LOG", "info"),
    ];
    let args = ["--log-format", "json", "--alias", "eye=qbridge-demo"];
    let server = Server::start_with(&demo_bundle(), &args, &env);
    let mut body = chat(&picture("dog.png"), QUESTION);
    body["model"] = json!("eye");
    body["max_tokens"] = json!(12);
    // New, seen before, not sampled, streamed, refused, without a key.
    let parent = |number, sampled| format!("00-{}-{PARENT}-0{sampled}", trace(number));
    let (status, answer) = ask(&server, &body, &parent(0, 1));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(status, 200, "{answer}");
    for (number, sampled) in [(1, 1), (2, 0)] {
        assert_eq!(ask(&server, &body, &parent(number, sampled)).0, 200);
    }
    body["stream"] = json!(true);
    assert_eq!(ask(&server, &body, &parent(3, 1)).0, 200);
    body["n"] = json!(0);
    assert_eq!(ask(&server, &body, &parent(4, 1)).0, 400);
    let health = server.url.replace("/v1", "/health");
    ureq::get(health).call().unwrap();
    let refused = ureq::get(format!("{}/%0aforged", server.url)).call();
    assert!(refused.is_err());
    // All of it is sent before the server is gone.
    let log = server.stop();

    let spans = collector.spans();
    let (request, stages) = request_of(&spans, &trace(0));
    assert_eq!(request.name, ROUTE);
    assert_eq!(hex(&request.parent_span_id), PARENT);
    let usage = &answer["usage"];
    let reason = &answer["choices"][0]["finish_reason"];
    for (key, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("qbridge")),
        ("gen_ai.request.model", json!("eye")),
        ("gen_ai.response.model", json!("qbridge-demo")),
        ("gen_ai.request.temperature", json!(0.0)),
        ("gen_ai.request.max_tokens", json!(12)),
        ("gen_ai.usage.input_tokens", usage["prompt_tokens"].clone()),
        (
            "gen_ai.usage.output_tokens",
            usage["completion_tokens"].clone(),
        ),
        ("qbridge.usage.image_tokens", json!(32)),
        ("gen_ai.response.finish_reasons", json!([reason])),
    ] {
        let told = attribute(&request.attributes, key);
        assert_eq!(told, Some(value), "{key} of {request:?}");
    }
    let passed = [
        "image_decode",
        "preprocess",
        "vit",
        "qformer",
        "queue",
        "prefill",
        "decode",
    ];
    assert_eq!(names(&stages), BTreeSet::from(passed));
    let mut in_order = stages.clone();
    in_order.sort_by_key(|stage| stage.start_time_unix_nano);
    let in_order: Vec<&str> = in_order.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(in_order, passed);

    // The log says the same, under the trace's id.
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let answered = |line: &&Value| line["fields"]["message"] == "answered";
    let of_trace = |line: &&Value| line["span"]["trace_id"] == json!(trace(0));
    let line = lines.iter().filter(answered).find(of_trace);
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for stage in &stages {
        let nanoseconds = stage.end_time_unix_nano - stage.start_time_unix_nano;
        let logged = line["fields"][&stage.name].as_f64().unwrap();
        let told = nanoseconds as f64 / 1e9;
        assert!((logged - told).abs() < 0.02, "{stage:?} {line}");
    }

    let (_, warm) = request_of(&spans, &trace(1));
    assert_eq!(names(&warm), BTreeSet::from(["queue", "prefill", "decode"]));
    let (streamed, stages) = request_of(&spans, &trace(3));
    assert_eq!(names(&stages), names(&warm));
    let reasons = attribute(&streamed.attributes, "gen_ai.response.finish_reasons");
    assert_eq!(reasons, Some(json!([reason])));
    let (bad, stages) = request_of(&spans, &trace(4));
    let status = attribute(&bad.attributes, "http.response.status_code");
    assert_eq!((status, stages.len()), (Some(json!(400)), 0));
    // What a client did wrong is no error of the server's.
    assert_eq!(bad.status.unwrap_or_default().code, 0);
    assert!(!spans.iter().any(|span| hex(&span.trace_id) == trace(2)));
    let others: Vec<&str> = spans
        .iter()
        .filter(|span| !hex(&span.trace_id).starts_with(&trace(0)[..30]))
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(others, ["GET"], "/health is none, and strangers name none");

    let batches = collector.batches();
    let resource = batches[0].resource_spans[0].resource.as_ref().unwrap();
    let service = attribute(&resource.attributes, "service.name");
    assert_eq!(service, Some(json!("pictures")));
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let image = body["messages"][0]["content"][0]["image_url"]["url"].as_str();
    let image = &image.unwrap()[..60];
    for secret in [KEY, "Rumpelstiltskin", "forged", content, image] {
        for body in collector.bodies.lock().unwrap().iter() {
            let is_told = body
                .windows(secret.len())
                .any(|piece| piece == secret.as_bytes());
            assert!(!is_told, "{secret}");
        }
    }
}

#[test]
fn who_leaves_shows_how_far_they_came() {
    let collector = Collector::start(Manner::Takes);
    let args = ["--otlp-endpoint", collector.url.as_str()];
    // The flag wins over the environment.
    let env = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/")];
    let server = Server::start_with(&demo_bundle(), &args, &env);
    let host = &server.url["http://".len()..server.url.len() - "/v1".len()];
    let mut stream = TcpStream::connect(host).unwrap();
    let body = json!({
        "model": "qbridge-demo",
        "messages": [{"role": "user", "content": "Count."}],
        "min_tokens": 3500,
        "max_completion_tokens": 3500,
        "stream": true,
    });
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         traceparent: 00-{}-{PARENT}-01\r\ncontent-length: {}\r\n\r\n{body}",
        trace(0),
        body.len()
    )
    .unwrap();
    let lines = BufReader::new(&stream).lines().map_while(Result::ok);
    assert_eq!(
        lines
            .filter(|line| line.starts_with("data:"))
            .take(3)
            .count(),
        3
    );
    drop(stream);
    server.stop();
    let (request, stages) = request_of(&collector.spans(), &trace(0));
    let why = attribute(&request.attributes, "error.type");
    assert_eq!(why, Some(json!("client_left")), "{request:?}");
    assert_eq!(
        names(&stages),
        BTreeSet::from(["queue", "prefill", "decode"])
    );
}

fn spans_by_outcome(server: &Server, outcome: &str) -> u64 {
    let url = server.url.replace("/v1", "/metrics");
    let text = ureq::get(url).call().unwrap().into_body().read_to_string();
    let sample = format!("qbridge_trace_spans_total{{outcome=\"{outcome}\"}} ");
    let text = text.unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix(&sample));
    number.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

fn no_request_waits_for(manner: Option<Manner>) {
    let collector = manner.map(Collector::start);
    let gone = "http://127.0.0.1:9".to_owned();
    let url = collector.map_or(gone, |collector| collector.url);
    let env = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &*format!("{url}/v1/traces"),
        ),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        ("QBRIDGE_LOG", "warn"),
    ];
    let server = Server::start_with(&demo_bundle(), &[], &env);
    let question = json!({
        "model": "qbridge-demo",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2,
    });
    assert_eq!(server.post("/chat/completions", &question).0, 200);
    // More than the queue holds, in less time than the collector is given.
    let started = Instant::now();
    let asked = 40;
    for _ in 0..asked {
        ureq::get(format!("{}/models", server.url)).call().unwrap();
    }
    let took = started.elapsed();
    // One wait for the collector in each would be 40 seconds.
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Each span is counted once, when it is given up at the latest.
    let deadline = Instant::now() + Duration::from_secs(30);
    let all = asked + 4;
    loop {
        let of = |outcome| spans_by_outcome(&server, outcome);
        let [dropped, failed, exported] = ["dropped", "failed", "exported"].map(of);
        assert_eq!(exported, 0);
        if dropped + failed == all {
            assert!(failed > 0, "{dropped} dropped");
            break;
        }
        let told = format!("{dropped} dropped and {failed} failed of {all}");
        assert!(Instant::now() < deadline, "{told}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let log = server.stop();
    let complaints = log.matches("the collector does not take spans").count();
    assert_eq!(complaints, 1, "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
}

#[test]
fn no_request_waits_for_a_collector_that_is_gone() {
    no_request_waits_for(None);
}

#[test]
fn no_request_waits_for_a_collector_that_sleeps() {
    no_request_waits_for(Some(Manner::Sleeps));
}

#[test]
fn no_request_waits_for_a_collector_that_lies() {
    no_request_waits_for(Some(Manner::Lies));
}

#[test]
fn no_request_waits_for_a_collector_that_refuses() {
    no_request_waits_for(Some(Manner::Refuses));
}

#[test]
fn what_cannot_be_a_collector_is_refused_at_the_start() {
    for (url, env, told) in [
        ("ftp://a.example", ("A", "b"), "--otlp-endpoint must be"),
        ("http://me:secret@a.example", ("A", "b"), "without a user"),
        (
            "http://a.example",
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            "OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by http/protobuf alone",
        ),
    ] {
        let args = ["serve", "no-bundle", "--otlp-endpoint", url];
        let error = one_line_error(qbridge(args).envs([env]));
        assert!(error.contains(told) && !error.contains("secret"), "{error}");
    }
}
