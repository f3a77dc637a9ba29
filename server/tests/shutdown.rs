//! A server on a port, and its end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use serde_json::json;
use server::ServeOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

async fn ask_port(listener: &TcpListener) -> TcpStream {
    let mut stream = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let body = chat(json!({"stream": true})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
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
    let mut client = ask_port(&listener).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(
        backend,
        ServeOptions::default(),
        listener,
        async {
            let _ = stopped.await;
        },
    ));
    let sender = loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if let Some(sender) = senders.lock().unwrap().pop() {
            break sender;
        }
    };
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
    let _client = ask_port(&listener).await;
    let waiting = async move {
        while senders.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let serving = server::serve(backend, options, listener, waiting);
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("it hangs")
        .unwrap();
}
