//! What strangers can write into the log. One test: the log is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::*;
use serde_json::{Value, json};
use server::fetch::{FetchOptions, Fetcher, Resolver, Resolving};
use server::{MediaDir, ServeOptions};

/// What the server logs, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct NoNames;

impl Resolver for NoNames {
    fn resolve(&self, host: &str) -> Resolving {
        let error = std::io::Error::other(format!("nothing is called {host}"));
        Box::pin(async { Err(error) })
    }
}

/// Every line of the log is one that the server began, whatever strangers send; and no key is in it.
#[tokio::test]
async fn nothing_sent_begins_a_line_of_the_log() {
    let log = Log::default();
    let sink = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(server::log::lines(move || sink.clone()))
        .init();
    let files = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(FetchOptions {
        resolver: Arc::new(NoNames),
        ..FetchOptions::default()
    });
    let options = ServeOptions {
        fetcher: Some(Arc::new(fetcher.unwrap())),
        media: Some(MediaDir::open(files.path()).unwrap()),
        ..ServeOptions::default()
    };
    let forged = "x\n2026-01-01T00:00:00Z  INFO forged\r\n\u{1b}[2J\u{9b}2J";
    let picture = |url: String| -> Value {
        let parts = json!([{"type": "image_url", "image_url": {"url": url}}]);
        chat(json!({"messages": [{"role": "user", "content": parts}]}))
    };
    let bodies = [
        chat(json!({"model": forged})),
        chat(json!({forged: 1})),
        chat(json!({"messages": [{"role": forged, "content": forged}]})),
        picture(forged.to_owned()),
        picture(format!("http://forged.test/{forged}")),
        picture(format!("http://10.0.0.1/{forged}")),
        picture(format!("file:///{forged}")),
    ];
    let failing = || {
        fake(move |_| {
            let reason = forged.to_owned();
            Err(bridge::Error::Decode { reason })
        })
    };
    for body in bodies.iter().chain([&chat(json!({}))]) {
        let mut asked = post(body);
        *asked.uri_mut() = "/v1/chat/completions?%0Aforged".parse().unwrap();
        let headers = asked.headers_mut();
        headers.insert("x-request-id", "a\tb".parse().unwrap());
        headers.insert("authorization", "Bearer sk-secret".parse().unwrap());
        send(router(failing(), options.clone()), asked).await;
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for logged in [
        "the model failed",
        "a picture was not fetched",
        "a file was not read",
    ] {
        assert!(text.contains(logged), "{text}");
    }
    for line in text.lines() {
        assert!(
            line.starts_with("20") && !line.starts_with("2026-01-01"),
            "{line:?}"
        );
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert!(!text.contains("sk-secret"));
}
