//! Refusals that come before the end of their request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use server::{ApiKeys, ServeOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One key, and bodies of up to 20 MiB.
fn options() -> ServeOptions {
    ServeOptions {
        api_keys: Some(ApiKeys::new(["sk-right"]).unwrap()),
        max_body_bytes: 20 << 20,
        ..ServeOptions::default()
    }
}

/// As Node's clients do: nothing is read before all is written, which is more than sockets hold.
#[tokio::test]
async fn who_still_writes_gets_the_refusal() {
    let (_serving, address) = serving(options()).await;
    for (mib, key, status) in [(16, "sk-wrong", "401"), (32, "sk-right", "413")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            mib << 20
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..mib {
            stream.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        }
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes());
    }
}

#[tokio::test]
async fn who_waits_to_go_on_is_told_at_once_and_who_stalls_soon() {
    let (_serving, address) = serving(options()).await;
    for (expect, least, most) in [("expect: 100-continue\r\n", 0, 1), ("", 1, 20)] {
        let started = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{expect}content-length: 1000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401");
        let waited = started.elapsed();
        let bounds = Duration::from_secs(least)..Duration::from_secs(most);
        assert!(bounds.contains(&waited), "{waited:?}");
    }
}

/// What never ends is not thrown away for ever.
#[tokio::test]
async fn far_too_much_is_not_waited_for() {
    let (_serving, address) = serving(options()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut written = 0;
    while written < 1000 && stream.write_all(&vec![b' '; 1 << 20]).await.is_ok() {
        written += 1;
    }
    assert!((40..200).contains(&written), "{written} MiB");
}
