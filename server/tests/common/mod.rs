//! A backend that follows a script, and requests to a router without a port.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bridge::engine::Sampling;
use bridge::event::{Event, FinishReason, Summary, Timings, Usage};
use bridge::model;
use bridge::retriever::{Found, RetrievalRequest, Retrieved, Score, Want};
use http_body_util::BodyExt;
use prompts::CallSyntax;
use serde_json::{Value, json};
use server::{Abilities, Activity, Backend, Retrieving, ServeOptions, Source};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

type Submit = dyn Fn(model::Request) -> bridge::Result<Receiver<Event>> + Send + Sync;

/// Calls a closure for each request.
pub struct Fake {
    submit: Box<Submit>,
    call_syntax: prompts::Result<CallSyntax>,
    abilities: Abilities,
    retrieve: Box<Retrieve>,
}

type Retrieve = dyn Fn(RetrievalRequest) -> bridge::Result<Retrieving> + Send + Sync;

impl Fake {
    /// A model that calls no functions, and why not.
    pub fn without_tools(mut self, why: prompts::Error) -> Fake {
        self.call_syntax = Err(why);
        self
    }

    /// A model that can do less.
    pub fn with_abilities(mut self, abilities: Abilities) -> Fake {
        self.abilities = abilities;
        self
    }

    /// A model that compares in another way than [`compared`].
    pub fn comparing(
        mut self,
        retrieve: impl Fn(RetrievalRequest) -> bridge::Result<Retrieving> + Send + Sync + 'static,
    ) -> Fake {
        self.retrieve = Box::new(retrieve);
        self
    }
}

impl Backend for Fake {
    fn default_sampling(&self) -> Sampling {
        Sampling {
            temperature: 0.25,
            ..Sampling::default()
        }
    }

    fn call_syntax(&self) -> prompts::Result<CallSyntax> {
        self.call_syntax.clone()
    }

    fn fingerprint(&self) -> &str {
        "fp_0123456789"
    }

    fn submit(&self, request: model::Request) -> bridge::Result<Receiver<Event>> {
        (self.submit)(request)
    }

    fn tokenize(&self, text: &str) -> bridge::Result<Vec<i32>> {
        Ok(text.bytes().map(i32::from).collect())
    }

    fn detokenize(&self, ids: &[i32]) -> Option<String> {
        let bytes: Option<Vec<u8>> = ids.iter().map(|&id| u8::try_from(id).ok()).collect();
        Some(String::from_utf8_lossy(&bytes?).into_owned())
    }

    fn n_ctx(&self) -> usize {
        4096
    }

    fn activity(&self) -> Activity {
        let mut activity = Activity::default();
        activity.engine.active = 3;
        activity.engine.waiting = 2;
        activity.vision.cache_hits = 5;
        activity.vision.cache_bytes = 7;
        activity.texts = 11;
        activity.pairs = 13;
        activity
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn retrieve(&self, request: RetrievalRequest) -> bridge::Result<Retrieving> {
        (self.retrieve)(request)
    }
}

/// An outcome that is there at once.
pub fn at_once(outcome: bridge::Result<Retrieved>) -> bridge::Result<Retrieving> {
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(outcome).is_ok());
    Ok(receiver)
}

/// Features of four values: two rows of a picture, one of a text; and scores that fall with the
/// numbers of picture and text, those of the nearest with a probability that rises with them.
pub fn compared(request: &RetrievalRequest) -> Retrieved {
    let (pictures, texts) = (request.pictures.len(), request.texts.len());
    let found = match &request.want {
        Want::Features => Found::Features {
            pictures: vec![
                vec![vec![1.0, 0.0, 0.0, 0.0], vec![0.0, 1.0, 0.0, 0.0]].into();
                pictures
            ],
            texts: vec![vec![0.6, 0.0, 0.8, 0.0]; texts],
        },
        Want::Scores { pairs, matched } => {
            let score = |(place, (picture, text)): (usize, &(usize, usize))| {
                let number = (picture + text) as f32;
                Score {
                    similarity: 0.5 / (1.0 + number),
                    probability: (place < *matched).then_some(number / 8.0),
                }
            };
            Found::Scores(pairs.iter().enumerate().map(score).collect())
        }
        Want::Caption(_) => panic!("captions are asked for by chat"),
    };
    Retrieved {
        found,
        usage: Usage {
            prompt_tokens: 32 * pictures + 3 * texts,
            image_tokens: 32 * pictures,
            cached_tokens: 0,
            completion_tokens: 0,
        },
    }
}

pub fn fake(
    submit: impl Fn(model::Request) -> bridge::Result<Receiver<Event>> + Send + Sync + 'static,
) -> Fake {
    Fake {
        submit: Box::new(submit),
        call_syntax: Ok(CallSyntax::Hermes),
        abilities: Abilities {
            chats: true,
            completes: true,
            compares: true,
            matches: true,
        },
        retrieve: Box::new(|request| at_once(Ok(compared(&request)))),
    }
}

/// The model "demo", which can be loaded but once.
pub fn once(backend: Fake) -> Source<Fake> {
    let backend = Mutex::new(Some(backend));
    Source::new("demo", move || {
        backend.lock().unwrap().take().ok_or(bridge::Error::Stopped)
    })
}

/// A server with the model "demo" alone.
pub fn router(backend: Fake, options: ServeOptions) -> Router {
    server::router(vec![once(backend)], options).unwrap()
}

/// Sends the same events whatever is asked, for each of the choices.
pub fn script(events: impl Fn() -> Vec<Event> + Send + Sync + 'static) -> Fake {
    fake(move |request| {
        let (sender, receiver) = channel(1024);
        for n in 0..request.sampling.n {
            for mut event in events() {
                match &mut event {
                    Event::Token { choice, .. } => *choice = n,
                    Event::Done(summary) => summary.choice = n,
                    Event::Error(_) => {}
                }
                sender.try_send(event).unwrap();
            }
        }
        Ok(receiver)
    })
}

/// Answers "A dog." and keeps the requests.
pub fn recorder() -> (Fake, Arc<Mutex<Vec<model::Request>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let backend = fake(move |request| {
        kept.lock().unwrap().push(request);
        let (sender, receiver) = channel(64);
        for event in dog() {
            sender.try_send(event).unwrap();
        }
        Ok(receiver)
    });
    (backend, seen)
}

/// Sends nothing, and hands its ends of the channels out.
pub fn hanging() -> (Fake, Arc<Mutex<Vec<Sender<Event>>>>) {
    let senders = Arc::new(Mutex::new(Vec::new()));
    let kept = senders.clone();
    let backend = fake(move |_| {
        let (sender, receiver) = channel(64);
        kept.lock().unwrap().push(sender);
        Ok(receiver)
    });
    (backend, senders)
}

/// Waits until something holds, which must not take long.
pub async fn until(holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it never holds"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The sender of a request that a [`hanging`] backend was asked.
pub async fn taken(senders: &Mutex<Vec<Sender<Event>>>) -> Sender<Event> {
    until(|| !senders.lock().unwrap().is_empty()).await;
    senders.lock().unwrap().pop().unwrap()
}

pub fn token(text: &str) -> Event {
    Event::Token {
        choice: 0,
        id: 7,
        text: text.to_owned(),
        logprobs: Vec::new(),
    }
}

pub fn done(text: &str, finish_reason: FinishReason) -> Event {
    Event::Done(Summary {
        mean_logprob: None,
        choice: 0,
        finish_reason,
        usage: Usage {
            prompt_tokens: 45,
            image_tokens: 32,
            cached_tokens: 12,
            completion_tokens: 4,
        },
        timings: Timings::default(),
        text: text.to_owned(),
        logprobs: Vec::new(),
    })
}

/// Two tokens, one that is not readable yet, and a held back rest.
pub fn dog() -> Vec<Event> {
    vec![
        token("A"),
        token(""),
        token(" dog"),
        done(".", FinishReason::Stop),
    ]
}

/// One pixel of PNG, which no fake looks at.
pub const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

pub fn picture() -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{PNG}")}})
}

/// A chat request with `fields` put over it.
pub fn chat(fields: Value) -> Value {
    let mut body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": [picture(), {"type": "text", "text": "What is it?"}]}],
    });
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn error(&self) -> Value {
        self.json()["error"].clone()
    }

    pub fn code(&self) -> String {
        self.error()["code"].as_str().unwrap().to_owned()
    }

    pub fn param(&self) -> Value {
        self.error()["param"].clone()
    }

    /// The data of the events, `[DONE]` included.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let text = std::str::from_utf8(&self.body).unwrap();
        let events = text
            .split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'));
        events
            .map(|event| match event.strip_prefix("data: ").unwrap() {
                "[DONE]" => json!("[DONE]"),
                data => serde_json::from_str(data).unwrap(),
            })
            .collect()
    }
}

pub fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

pub fn post(body: &Value) -> Request<Body> {
    request("POST", "/v1/chat/completions", body.to_string())
}

/// A server on a port, ready, which answers `dog`.
pub async fn serving(options: ServeOptions) -> (JoinHandle<server::Result<()>>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, is_ready) = oneshot::channel();
    let serving = tokio::spawn(server::serve(
        vec![once(script(dog))],
        options,
        listener,
        || ready.send(()).unwrap(),
        std::future::pending(),
    ));
    is_ready.await.unwrap();
    (serving, address)
}

pub async fn send(router: Router, request: Request<Body>) -> Answer {
    let response = router.oneshot(request).await.unwrap();
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        body: response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec(),
    }
}

pub async fn ask(backend: Fake, fields: Value) -> Answer {
    send(
        router(backend, ServeOptions::default()),
        post(&chat(fields)),
    )
    .await
}

/// What differs from run to run, made the same.
pub fn settled(mut value: Value) -> Value {
    if let Some(id) = value.get("id").and_then(Value::as_str) {
        assert!(id.starts_with("chatcmpl-"), "{id}");
        value["id"] = json!("chatcmpl-ID");
        assert!(value["created"].as_u64().unwrap() > 1_700_000_000);
        value["created"] = json!(0);
    }
    sorted(value)
}

/// `value` with its keys in order, whatever serde_json keeps (a feature that other crates may turn on).
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map
                .into_iter()
                .map(|(name, value)| (name, sorted(value)))
                .collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        other => other,
    }
}
