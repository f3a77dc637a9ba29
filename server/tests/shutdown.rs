//! A server on a port: its beginning and its end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::StatusCode;
use common::*;
use serde_json::json;
use server::{ServeOptions, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

async fn ask_port(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = chat(json!({"stream": true})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    stream
}

#[tokio::test]
async fn running_answers_end_before_the_server_does() {
    let (backend, senders) = hanging();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, is_ready) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(
        vec![once(backend)],
        ServeOptions::default(),
        listener,
        || ready.send(()).unwrap(),
        async {
            let _ = stopped.await;
        },
    ));
    is_ready.await.unwrap();
    let mut client = ask_port(address).await;
    let sender = taken(&senders).await;
    sender.send(token("A")).await.unwrap();
    stop.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!serving.is_finished());
    for event in dog() {
        sender.send(event).await.unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("data: [DONE]"), "{answer}");
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_hanging_answer_does_not_hold_the_server() {
    let (backend, senders) = hanging();
    let options = ServeOptions {
        shutdown_grace: Duration::from_millis(50),
        ..ServeOptions::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = async move {
        let client = ask_port(address).await;
        until(|| !senders.lock().unwrap().is_empty()).await;
        // It stays connected while the server stops.
        tokio::spawn(async move {
            let _client = client;
            std::future::pending::<()>().await;
        });
    };
    let serving = server::serve(vec![once(backend)], options, listener, || (), waiting);
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("it hangs")
        .unwrap();
}

/// The head of the answer to a request without a body.
async fn get(address: SocketAddr, path: &str) -> (StatusCode, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[tokio::test]
async fn it_is_alive_at_once_and_ready_when_the_model_is_loaded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (loaded, load) = std::sync::mpsc::channel::<()>();
    let load = Mutex::new(load);
    let (ready, is_ready) = oneshot::channel();
    let serving = tokio::spawn(server::serve(
        vec![Source::new("demo", move || {
            load.lock().unwrap().recv().unwrap();
            Ok(script(dog))
        })],
        ServeOptions::default(),
        listener,
        || ready.send(()).unwrap(),
        std::future::pending(),
    ));
    assert_eq!(get(address, "/health").await.0, 200);
    for path in ["/ready", "/v1/models"] {
        let (status, answer) = get(address, path).await;
        assert_eq!(status, 503);
        assert!(answer.contains("retry-after: 5\r\n"), "{answer}");
        assert!(answer.contains(r#""code":"loading""#), "{answer}");
    }
    let mut client = TcpStream::connect(address).await.unwrap();
    // Refused although its body never comes.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    client.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");

    loaded.send(()).unwrap();
    is_ready.await.unwrap();
    assert_eq!(get(address, "/ready").await.0, 200);
    assert_eq!(get(address, "/v1/models").await.0, 200);
    serving.abort();
}

#[tokio::test]
async fn a_model_that_does_not_load_ends_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let failing = Source::new("demo", || Err::<Fake, _>(bridge::Error::Stopped));
    let served = server::serve(
        vec![failing],
        ServeOptions::default(),
        listener,
        || panic!("ready without a model"),
        std::future::pending(),
    );
    let error = served.await.unwrap_err();
    assert_eq!(error.to_string(), bridge::Error::Stopped.to_string());
}

#[tokio::test]
async fn nobody_is_served_by_accident() {
    let everywhere = || TcpListener::bind("0.0.0.0:0");
    let serve = |options, listener| {
        server::serve(
            vec![once(script(dog))],
            options,
            listener,
            || (),
            std::future::ready(()),
        )
    };
    let refused = serve(ServeOptions::default(), everywhere().await.unwrap()).await;
    let told = refused.unwrap_err().to_string();
    assert!(
        told.contains("--api-key-file") && told.contains("--no-auth"),
        "{told}"
    );
    let meant = [
        ServeOptions {
            no_auth: true,
            ..ServeOptions::default()
        },
        ServeOptions {
            api_keys: Some(server::ApiKeys::new(["key"]).unwrap()),
            ..ServeOptions::default()
        },
    ];
    for options in meant {
        serve(options, everywhere().await.unwrap()).await.unwrap();
    }
}

/// One that opens a connection and sends a byte now and then holds nothing for long.
#[tokio::test]
async fn a_head_that_never_ends_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ServeOptions {
        body_timeout: Duration::from_millis(100),
        ..ServeOptions::default()
    };
    let serving = tokio::spawn(server::serve(
        vec![once(script(dog))],
        options,
        listener,
        || (),
        std::future::pending(),
    ));
    let mut client = TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"GET /health HTTP/1.1\r\nx: ")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut rest));
    closed.await.expect("it waits").unwrap();
    serving.abort();
}

/// A page whose name leads to this machine is of the same origin as the server, and no rule of the browser keeps it out.
#[tokio::test]
async fn dns_rebinding_finds_no_server_without_keys() {
    let status = async |options: ServeOptions, hosts: [&str; 2]| {
        let (serving, address) = serving(options).await;
        let mut statuses = Vec::new();
        for host in hosts {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let port = address.port();
            let host = host.replace("PORT", &port.to_string());
            let head =
                format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            statuses.push(answer[9..12].parse::<u16>().unwrap());
        }
        serving.abort();
        statuses
    };
    let open = ServeOptions::default;
    assert_eq!(
        status(open(), ["localhost:PORT", "127.0.0.1:PORT"]).await,
        [200, 200]
    );
    assert_eq!(
        status(open(), ["[::1]:PORT", "LocalHost"]).await,
        [200, 200]
    );
    assert_eq!(
        status(open(), ["evil.example:PORT", "localhost.evil.example"]).await,
        [403, 403]
    );
    assert_eq!(
        status(open(), ["127.0.0.1.evil.example", "@evil.example"]).await,
        [403, 403]
    );
    let named = ServeOptions {
        hosts: vec!["proxy.example".to_owned()],
        ..open()
    };
    assert_eq!(
        status(named, ["Proxy.Example:PORT", "evil.example"]).await,
        [200, 403]
    );
    let keys = ServeOptions {
        api_keys: Some(server::ApiKeys::new(["key"]).unwrap()),
        ..open()
    };
    // A page has no key.
    assert_eq!(
        status(keys, ["evil.example", "localhost"]).await,
        [401, 401]
    );
}
