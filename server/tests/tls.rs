//! `https`, with a certificate made for the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::*;
use rustls::pki_types::CertificateDer;
use server::{ServeOptions, Tls};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[tokio::test]
async fn a_certificate_and_its_key_make_https() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = ServeOptions {
        tls: Some(Tls::from_pem_files(&cert, &key).unwrap()),
        ..ServeOptions::default()
    };
    let (ready, is_ready) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(
        vec![once(script(dog))],
        options,
        listener,
        || ready.send(()).unwrap(),
        async {
            let _ = stopped.await;
        },
    ));
    is_ready.await.unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from(made.cert.der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .build()
        .unwrap();
    let health = |scheme: &str| {
        client
            .get(format!("{scheme}://localhost:{port}/health"))
            .send()
    };
    let answer = health("https").await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), r#"{"status":"ok"}"#);
    assert!(health("http").await.is_err());
    drop(client);
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();

    let missing = Tls::from_pem_files(&dir.path().join("none.pem"), &key).unwrap_err();
    assert!(missing.to_string().contains("none.pem"), "{missing}");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    assert!(Tls::from_pem_files(&cert, &key).is_err());
    std::fs::write(&key, "no key").unwrap();
    assert!(Tls::from_pem_files(&cert, &key).is_err());
}
