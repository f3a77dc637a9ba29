//! Who may enter: keys and browsers' origins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use common::*;
use serde_json::json;
use server::{ApiKeys, CorsOrigin, ServeOptions};

fn guarded() -> Router {
    let options = ServeOptions {
        api_keys: Some(ApiKeys::new(["sk-first", "# comment", "", " sk-second "]).unwrap()),
        cors_origins: vec!["https://app.example.com".parse().unwrap()],
        ..ServeOptions::default()
    };
    router(script(dog), options)
}

fn with(mut request: Request<Body>, headers: &[(&'static str, &str)]) -> Request<Body> {
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_key_opens_everything() {
    for key in ["Bearer sk-first", "bearer sk-second", "Bearer  sk-first"] {
        let asked = with(post(&chat(json!({}))), &[("authorization", key)]);
        assert_eq!(send(guarded(), asked).await.status, 200, "{key}");
    }
}

/// All routes but two and the files of the page, those that do not exist too: the list of open ones is the exception.
#[tokio::test]
async fn without_a_key_nothing_but_health_and_the_page_is_told() {
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/demo"),
        ("GET", "/v1/models/nothing"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/metrics"),
        ("GET", "/page"),
        ("GET", "/nothing"),
    ] {
        let answer = send(guarded(), request(method, path, Body::empty())).await;
        assert_eq!(answer.status, 401, "{method} {path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let told = json!({
            "message": "send a valid API key as authorization: Bearer KEY",
            "type": "invalid_request_error",
            "param": null,
            "code": "invalid_api_key",
        });
        assert_eq!(answer.error(), told);
    }
    for path in ["/health", "/ready"] {
        let answer = send(guarded(), request("GET", path, Body::empty())).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let wrong: &[&[(&str, &str)]] = &[
        &[("authorization", "")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "sk-first")],
        &[("authorization", "Basic sk-first")],
        &[("authorization", "Bearer sk-firs")],
        &[("authorization", "Bearer sk-first2")],
        &[("authorization", "Bearer SK-FIRST")],
        &[("authorization", "Bearer sk-first sk-second")],
        &[("authorization", "Bearer # comment")],
        &[
            ("authorization", "Bearer sk-first"),
            ("authorization", "Bearer wrong"),
        ],
        &[("x-api-key", "sk-first")],
        &[("cookie", "authorization=Bearer sk-first")],
    ];
    for headers in wrong {
        let asked = with(request("GET", "/v1/models", Body::empty()), headers);
        assert_eq!(send(guarded(), asked).await.status, 401, "{headers:?}");
    }
    let in_query = request("GET", "/v1/models?api_key=sk-first", Body::empty());
    assert_eq!(send(guarded(), in_query).await.status, 401);
}

/// vLLM's key check looked at a URL that it put together from `Host`.
#[tokio::test]
async fn cve_2026_48746_no_host_or_path_goes_around_the_keys() {
    for path in [
        "http://h/health/../v1/models",
        "//health/v1/models",
        "/v1/models?/health",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/v1/models#/health",
        "/v1/models;/health",
        "/HEALTH",
        "/health/",
    ] {
        for host in ["localhost", "h/health?", "127.0.0.1/health#", "/health"] {
            let asked = with(request("GET", path, Body::empty()), &[("host", host)]);
            assert_eq!(send(guarded(), asked).await.status, 401, "{path} {host}");
        }
    }
}

/// TGI read and fetched before it looked at the key.
#[tokio::test]
async fn cve_2026_0599_the_key_comes_before_the_body() {
    let never = futures_util::stream::pending::<std::io::Result<Vec<u8>>>();
    let asked = request("POST", "/v1/chat/completions", Body::from_stream(never));
    assert_eq!(send(guarded(), asked).await.status, 401);
}

#[test]
fn keys_are_checked_when_they_are_read_and_never_shown() {
    for none in [&[][..], &["", " ", "# only"], &["sk-ключ"], &["two words"]] {
        let error = ApiKeys::new(none.iter().copied()).unwrap_err().to_string();
        assert!(
            !error.contains("words") && !error.contains("sk-"),
            "{error}"
        );
    }
    let options = ServeOptions {
        api_keys: Some(ApiKeys::new(["sk-secret"]).unwrap()),
        ..ServeOptions::default()
    };
    let shown = format!("{options:?}");
    assert!(shown.contains("1 API keys") && !shown.contains("secret"));
}

fn preflight(origin: &str) -> Request<Body> {
    with(
        request("OPTIONS", "/v1/chat/completions", Body::empty()),
        &[
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,x-stainless-os",
            ),
        ],
    )
}

fn allowed_origin(headers: &HeaderMap) -> Option<&str> {
    let origin = headers.get("access-control-allow-origin")?;
    Some(origin.to_str().unwrap())
}

#[tokio::test]
async fn browsers_are_kept_out_unless_their_origin_is_named() {
    let named = "https://app.example.com";
    let answer = send(
        router(script(dog), ServeOptions::default()),
        preflight(named),
    )
    .await;
    assert_eq!(allowed_origin(&answer.headers), None);

    let answer = send(guarded(), preflight(named)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(allowed_origin(&answer.headers), Some(named));
    assert_eq!(
        answer.headers["access-control-allow-headers"],
        "authorization,x-stainless-os"
    );
    for other in [
        "https://app.example.com.evil.net",
        "http://app.example.com",
        "null",
    ] {
        let answer = send(guarded(), preflight(other)).await;
        assert_eq!(allowed_origin(&answer.headers), None, "{other}");
    }
    // An origin is no key.
    let asked = with(
        request("GET", "/v1/models", Body::empty()),
        &[("origin", named)],
    );
    let answer = send(guarded(), asked).await;
    assert_eq!(answer.status, 401);
    assert_eq!(allowed_origin(&answer.headers), Some(named));

    let everyone = ServeOptions {
        cors_origins: vec!["*".parse().unwrap()],
        ..ServeOptions::default()
    };
    let answer = send(
        router(script(dog), everyone),
        preflight("https://a.example"),
    )
    .await;
    assert_eq!(allowed_origin(&answer.headers), Some("*"));
}

#[test]
fn origins_are_origins() {
    for origin in [
        "https://a.example",
        "http://localhost:3000",
        "https://[::1]:8443",
        "*",
    ] {
        assert!(origin.parse::<CorsOrigin>().is_ok(), "{origin}");
    }
    for other in [
        "",
        "a.example",
        "https://a.example/",
        "https://a.example/x",
        "https://*.a",
        "null",
        "file:///",
        "a:b",
    ] {
        assert!(other.parse::<CorsOrigin>().is_err(), "{other}");
    }
}

#[tokio::test]
async fn odd_request_ids_are_replaced() {
    for (sent, kept) in [
        ("call-7_a.b", true),
        ("", false),
        ("two words", false),
        ("quote\"", false),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
    ] {
        let asked = with(
            request("GET", "/health", Body::empty()),
            &[("x-request-id", sent)],
        );
        let answer = send(guarded(), asked).await;
        assert_eq!(answer.headers["x-request-id"] == sent, kept, "{sent}");
    }
}
